-- Workers that run at the moment, so that a gateway can hand one the first step of a turn.
CREATE TABLE workers (
  id text PRIMARY KEY,
  task_queue text NOT NULL,
  has_room boolean NOT NULL,
  seen_at timestamptz NOT NULL
);

-- When the owner of a head start that has failed gives it up.
ALTER TABLE steps ADD COLUMN retry_at timestamptz;
