"""What the key pool says to PostgreSQL. Times are whole microseconds since 1970 on the way in and out."""

from __future__ import annotations

from sqlalchemy import text

#: On which it tells of keys whose health has changed.
CHANNEL = "dangerous_driving_keys"

LOCK_KEYS = text("SELECT set_config('lock_timeout', :timeout, true), pg_advisory_xact_lock(:lock)")
# a statement of its own: it must see what was committed while the lock was waited for
READ_KEYS = text(
    "SELECT key_hash, label, qps_limit, rpm_limit, state, state_reason, failures, coolings, learned_qps, learned_rpm, "
    "(extract(epoch FROM cooling_until) * 1000000)::bigint AS cooling, "
    "(extract(epoch FROM probing_until) * 1000000)::bigint AS probing, "
    "(extract(epoch FROM learned_at) * 1000000)::bigint AS learned, "
    "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint FROM api_key WHERE key_hash = ANY(:keys)"
)
READ_NEW = text(
    "SELECT id, key_hash, lane, (extract(epoch FROM reserved_at) * 1000000)::bigint, given_back FROM key_reservation "
    "WHERE id > :seen AND key_hash = ANY(:keys) AND reserved_at > to_timestamp(:since / 1000000.0) ORDER BY id"
)
REGISTER = text(
    "INSERT INTO api_key (key_hash, label, qps_limit, rpm_limit) VALUES (:key, :label, :qps, :rpm) "
    "ON CONFLICT (key_hash) DO UPDATE SET label = excluded.label, qps_limit = excluded.qps_limit, "
    "rpm_limit = excluded.rpm_limit, updated_at = now()"
)
WRITE_HEALTH = text(
    "UPDATE api_key SET state = :state, state_reason = :reason, failures = :failures, coolings = :coolings, "
    "cooling_until = to_timestamp(:cooling / 1000000.0), probing_until = to_timestamp(:probing / 1000000.0), "
    "learned_qps = :learned_qps, learned_rpm = :learned_rpm, "
    "learned_at = to_timestamp(CAST(:learned AS bigint) / 1000000.0), updated_at = now() WHERE key_hash = :key"
)
NOTIFY = text(f"SELECT pg_notify('{CHANNEL}', :key)")
RESERVE = text(
    "INSERT INTO key_reservation (key_hash, lane, reserved_at, given_back) "
    "SELECT key, lane, to_timestamp(at / 1000000.0), back FROM unnest(CAST(:keys AS text[]), CAST(:lanes AS text[]), "
    "CAST(:times AS bigint[]), CAST(:back AS boolean[])) AS slot (key, lane, at, back) RETURNING id"
)
PRUNE = text("DELETE FROM key_reservation WHERE reserved_at < to_timestamp(:before / 1000000.0)")
SET_BACK = text(
    "UPDATE key_reservation SET reserved_at = to_timestamp(:now / 1000000.0) "
    "WHERE reserved_at > to_timestamp(:now / 1000000.0)"
)
MEMBER = text(
    "INSERT INTO key_pool_member (member) VALUES (:member) ON CONFLICT (member) DO UPDATE SET seen_at = clock_timestamp()"
)
PRUNE_MEMBERS = text("DELETE FROM key_pool_member WHERE seen_at < clock_timestamp() - make_interval(secs => :age)")
COUNT_MEMBERS = text("SELECT count(*) FROM key_pool_member")
SPEND = text(
    "INSERT INTO lane_spending (day, lane, calls, cost) "
    "VALUES ((clock_timestamp() AT TIME ZONE 'UTC')::date, :lane, :calls, :cost) ON CONFLICT (day, lane) "
    "DO UPDATE SET calls = lane_spending.calls + excluded.calls, cost = lane_spending.cost + excluded.cost"
)
READ_SPENT = text("SELECT lane, calls, cost FROM lane_spending WHERE day = :day")
