#!/bin/sh
# Makes ./site beside compose.yaml: settings to go through, fresh passwords, folders. What is there already stays as it is.
#   infra/compose/prepare.sh [FOLDER]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
site=${1:-$here/site}
umask 077
mkdir -p "$site/database"

once() { # once FILE MODE: standard input, if there is no such file yet
    if [ -e "$1" ]; then cat > /dev/null; echo "kept     $1"; else cat > "$1"; chmod "$2" "$1"; echo "written  $1"; fi
}
# containers read these as other users than yours: the folder around them keeps others out
for name in postgres_password database_password reader_password; do
    openssl rand -hex 24 | tr -d '\n' | once "$site/database/$name" 644
done
mkdir -p "$site/secrets" "$site/settings" "$site/weights"
chmod 755 "$site/secrets" "$site/settings" "$site/weights" "$site/database"
once "$site/settings/settings.yaml" 644 < "$here/settings.example.yaml"
owner=$(cat "$site/database/database_password")
once "$site/environment" 600 <<END
DD_DATABASE__URL=postgresql://dangerous_driving:$owner@postgres:5432/dangerous_driving
DAGSTER_POSTGRES_URL=postgresql://dangerous_driving:$owner@postgres:5432/dagster
DAGSTER_MAX_CONCURRENT_RUNS=2
END
once "$site/page.environment" 600 <<END
DD_REALTIME__TOKEN_SECRET=$(openssl rand -base64 48)
END
once "$site/grafana.environment" 600 <<END
GF_SECURITY_ADMIN_PASSWORD=$(openssl rand -hex 16)
GF_ANALYTICS_REPORTING_ENABLED=false
GF_ANALYTICS_CHECK_FOR_UPDATES=false
DD_GRAFANA_POSTGRES_ADDRESS=postgres:5432
DD_GRAFANA_POSTGRES_DATABASE=dangerous_driving
DD_GRAFANA_POSTGRES_USER=traffic_reader
DD_GRAFANA_POSTGRES_PASSWORD=$(cat "$site/database/reader_password")
DD_GRAFANA_POSTGRES_SSLMODE=disable
DD_GRAFANA_PROMETHEUS_URL=http://prometheus:9090
END
