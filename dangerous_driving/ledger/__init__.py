"""The ledger: the PostgreSQL tables of frames, tasks, assessments, calls and alerts. The queue of record."""
