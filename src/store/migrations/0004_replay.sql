-- Names the effect that a tool call has, the same in every replay of its turn [8].
ALTER TABLE steps ADD COLUMN effect_key text;

CREATE INDEX steps_by_effect ON steps (effect_key) WHERE effect_key IS NOT NULL;

ALTER TABLE steps
  DROP CONSTRAINT steps_outcome_check,
  ADD CONSTRAINT steps_outcome_check CHECK (outcome IN ('ok', 'error', 'unknown', 'not_run'));

ALTER TABLE turns
  ADD COLUMN replay_of text REFERENCES turns,
  -- The turn that was replayed first; its calls name the effects.
  ADD COLUMN origin_turn_id text,
  -- Which calls of tools run: none but repeatable ones, also those without a record, or all.
  ADD COLUMN replay_effects text CHECK (replay_effects IN ('recorded', 'new', 'all')),
  -- Nobody is shown it; it is there to be compared.
  ADD COLUMN is_dry_run boolean NOT NULL DEFAULT false,
  -- Where the conversation stood when the turn got hold of it: what was before is the turn's base.
  ADD COLUMN base_position bigint;

CREATE INDEX turns_by_replayed ON turns (replay_of) WHERE replay_of IS NOT NULL;
