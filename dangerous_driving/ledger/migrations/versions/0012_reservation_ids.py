"""The ids of the key pool's log outlive a crash of the server, which empties the log itself.

A process reads the log from the newest id that it knows. From PostgreSQL 15 on the identity of an unlogged table is
unlogged too and begins at 1 again after a crash: what the others wrote then lay below that id and was never read.

Revision ID: 0012
Revises: 0011
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# before 15 every sequence is logged, and the server does not know the words
STATEMENT = """
    DO $$
    BEGIN
        IF current_setting('server_version_num')::int >= 150000 THEN
            EXECUTE 'ALTER SEQUENCE ' || pg_get_serial_sequence('key_reservation', 'id') || ' SET {persistence}';
        END IF;
    END
    $$
"""


def upgrade() -> None:
    op.execute(STATEMENT.format(persistence="LOGGED"))


def downgrade() -> None:
    op.execute(STATEMENT.format(persistence="UNLOGGED"))
