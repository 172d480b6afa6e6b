-- Names the effect that a tool call has, the same in every replay of its turn [8].
ALTER TABLE steps ADD COLUMN effect_key text;

CREATE INDEX steps_by_effect ON steps (effect_key) WHERE effect_key IS NOT NULL;

ALTER TABLE steps
  DROP CONSTRAINT steps_outcome_check,
  ADD CONSTRAINT steps_outcome_check CHECK (outcome IN ('ok', 'error', 'unknown', 'not_run'));
