"""How good the detector is, what cameras show and whether it has changed, challengers that assess beside the champion.

Revision ID: 0010
Revises: 0009
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

TABLES = (
    "detector_evaluation", "detector_score", "detector_group_recall", "detection_profile", "drift_score",
    "drift_baseline", "shadow", "shadow_window",
)  # fmt: skip

STATEMENTS = (
    """
    CREATE TABLE detector_evaluation (
        evaluation_id TEXT NOT NULL,
        weights TEXT NOT NULL,
        weights_hash TEXT NOT NULL,
        data_set TEXT NOT NULL,
        data_hash TEXT NOT NULL,
        simulated BOOLEAN NOT NULL,
        pictures INTEGER NOT NULL,
        engine TEXT NOT NULL,
        input_size INTEGER,
        confidence DOUBLE PRECISION NOT NULL,
        iou DOUBLE PRECISION NOT NULL,
        group_distance DOUBLE PRECISION NOT NULL,
        evaluated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT pk_detector_evaluation PRIMARY KEY (evaluation_id)
    )
    """,
    "CREATE INDEX ix_detector_evaluation_data_set_evaluated_at ON detector_evaluation (data_set, evaluated_at)",
    """
    CREATE TABLE detector_score (
        evaluation_id TEXT NOT NULL,
        class_name TEXT NOT NULL,
        size TEXT NOT NULL,
        light TEXT NOT NULL,
        weather TEXT NOT NULL,
        pictures INTEGER NOT NULL,
        objects INTEGER NOT NULL,
        ap DOUBLE PRECISION,
        ap50 DOUBLE PRECISION,
        ap75 DOUBLE PRECISION,
        ar DOUBLE PRECISION,
        recall DOUBLE PRECISION,
        precision DOUBLE PRECISION,
        CONSTRAINT pk_detector_score PRIMARY KEY (evaluation_id, class_name, size, light, weather),
        CONSTRAINT ck_detector_score_size CHECK (size IN ('all', 'small', 'medium', 'large')),
        FOREIGN KEY(evaluation_id) REFERENCES detector_evaluation (evaluation_id) ON DELETE CASCADE
    )
    """,
    """
    CREATE TABLE detector_group_recall (
        evaluation_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        risk_type TEXT NOT NULL,
        light TEXT NOT NULL,
        weather TEXT NOT NULL,
        groups INTEGER NOT NULL,
        found INTEGER NOT NULL,
        precision DOUBLE PRECISION,
        CONSTRAINT pk_detector_group_recall PRIMARY KEY (evaluation_id, kind, risk_type, light, weather),
        CONSTRAINT ck_detector_group_recall_kind CHECK (kind IN ('group', 'danger')),
        FOREIGN KEY(evaluation_id) REFERENCES detector_evaluation (evaluation_id) ON DELETE CASCADE
    )
    """,
    """
    CREATE TABLE detection_profile (
        camera_id TEXT NOT NULL,
        hour TIMESTAMP WITH TIME ZONE NOT NULL,
        variable TEXT NOT NULL,
        model TEXT NOT NULL,
        counts JSONB NOT NULL,
        CONSTRAINT pk_detection_profile PRIMARY KEY (camera_id, hour, variable, model),
        CONSTRAINT ck_detection_profile_variable CHECK (variable IN ('class', 'confidence', 'group_size', 'road_users'))
    )
    """,
    "CREATE INDEX ix_detection_profile_hour ON detection_profile (hour)",
    """
    CREATE TABLE drift_score (
        camera_id TEXT NOT NULL,
        day DATE NOT NULL,
        variable TEXT NOT NULL,
        state TEXT NOT NULL,
        psi DOUBLE PRECISION,
        jensen_shannon DOUBLE PRECISION,
        usual DOUBLE PRECISION,
        count INTEGER NOT NULL,
        baseline_count INTEGER NOT NULL,
        baseline_days INTEGER NOT NULL,
        changes JSONB NOT NULL,
        model TEXT NOT NULL,
        model_changed BOOLEAN NOT NULL,
        scored_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT pk_drift_score PRIMARY KEY (camera_id, day, variable),
        CONSTRAINT ck_drift_score_state CHECK (state IN ('too_little', 'stable', 'moderate', 'drifted')),
        CONSTRAINT ck_drift_score_psi CHECK ((state = 'too_little') = (psi IS NULL))
    )
    """,
    "CREATE INDEX ix_drift_score_day ON drift_score (day)",
    """
    CREATE TABLE drift_baseline (
        camera_id TEXT NOT NULL,
        since DATE NOT NULL,
        accepted_by TEXT NOT NULL,
        note TEXT DEFAULT '' NOT NULL,
        accepted_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT pk_drift_baseline PRIMARY KEY (camera_id)
    )
    """,
    """
    CREATE TABLE shadow (
        run TEXT NOT NULL,
        prompt_version TEXT NOT NULL,
        model TEXT NOT NULL,
        share DOUBLE PRECISION NOT NULL,
        since TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        ended_at TIMESTAMP WITH TIME ZONE,
        started_by TEXT DEFAULT '' NOT NULL,
        CONSTRAINT pk_shadow PRIMARY KEY (run),
        CONSTRAINT ck_shadow_run CHECK (run LIKE 'shadow:%'),
        CONSTRAINT ck_shadow_share CHECK (share > 0 AND share <= 1)
    )
    """,
    """
    CREATE TABLE shadow_window (
        run TEXT NOT NULL,
        camera_id TEXT NOT NULL,
        window_start TIMESTAMP WITH TIME ZONE NOT NULL,
        length INTEGER NOT NULL,
        version INTEGER NOT NULL,
        attempts INTEGER DEFAULT 0 NOT NULL,
        problem TEXT,
        assessed_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT pk_shadow_window PRIMARY KEY (run, camera_id, window_start, length),
        FOREIGN KEY(run) REFERENCES shadow (run) ON DELETE CASCADE
    )
    """,
    "CREATE INDEX ix_shadow_window_window_start ON shadow_window (window_start)",
    # whatever a command or a mistake asks for: what a challenger said beside the champion is never the current answer
    "ALTER TABLE risk_assessment ADD CONSTRAINT ck_risk_assessment_shadow CHECK (NOT (is_current AND run LIKE 'shadow:%'))",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("ALTER TABLE risk_assessment DROP CONSTRAINT ck_risk_assessment_shadow")
    for table in reversed(TABLES):
        op.execute(f"DROP TABLE {table}")
