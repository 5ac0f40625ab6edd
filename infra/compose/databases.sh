#!/bin/sh
# At the first start of the volume: the roles and databases of docs/install.md and docs/security.md.
set -eu
psql --set ON_ERROR_STOP=1 --quiet --username "${POSTGRES_USER:-postgres}" --dbname postgres \
    --set owner_password="$(cat "${SECRETS:-/run/secrets}/database_password")" \
    --set reader_password="$(cat "${SECRETS:-/run/secrets}/reader_password")" <<'SQL'
CREATE ROLE dangerous_driving LOGIN PASSWORD :'owner_password';
CREATE DATABASE dangerous_driving OWNER dangerous_driving;
CREATE DATABASE dagster OWNER dangerous_driving;
-- Grafana: the marts, and nothing else
CREATE ROLE traffic_reader LOGIN PASSWORD :'reader_password';
GRANT CONNECT ON DATABASE dangerous_driving TO traffic_reader;
\connect dangerous_driving
CREATE SCHEMA marts AUTHORIZATION dangerous_driving;
GRANT USAGE ON SCHEMA marts TO traffic_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE dangerous_driving IN SCHEMA marts GRANT SELECT ON TABLES TO traffic_reader;
SQL
