ALTER TABLE turns
  -- Granted before those that only queue: its admission has cancelled the turn that it waits for.
  ADD COLUMN interrupts boolean NOT NULL DEFAULT false,
  -- How long the turn outlives the connections of those who follow it; without it, for ever.
  ADD COLUMN disconnect_grace_ms int,
  -- When the turn is to be cancelled, unless somebody follows it again before.
  ADD COLUMN cancel_at timestamptz;
