-- Bodies that come from outside are JSON in text columns: escaped, a NUL or a lone surrogate survives.

-- A documented requirement from the first release on: retrieval keeps its vectors here.
CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE projects (
  id text PRIMARY KEY,
  created_at timestamptz NOT NULL DEFAULT now()
);

INSERT INTO projects (id) VALUES ('default');

CREATE TABLE api_keys (
  id text PRIMARY KEY,
  project_id text NOT NULL REFERENCES projects,
  name text NOT NULL,
  secret_hash bytea NOT NULL UNIQUE,
  created_at timestamptz NOT NULL DEFAULT now(),
  revoked_at timestamptz
);

-- Agents are code, so they belong to the deployment; the newest registration of a name is current.
CREATE TABLE agents (
  name text NOT NULL,
  version text NOT NULL,
  definition text NOT NULL,
  registered_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (name, version)
);

CREATE TABLE conversations (
  id text PRIMARY KEY,
  project_id text NOT NULL REFERENCES projects,
  metadata text NOT NULL DEFAULT '{}',
  -- A fork shares the items of its base that lie before base_position.
  base_conversation_id text REFERENCES conversations,
  base_position bigint,
  next_position bigint NOT NULL DEFAULT 0,
  holder_turn_id text,
  head_turn_id text,
  -- JSON: type and id of each call that the next turn has to answer.
  pending_calls text NOT NULL DEFAULT '[]',
  created_at timestamptz NOT NULL DEFAULT now(),
  deleted_at timestamptz
);

CREATE TABLE items (
  conversation_id text NOT NULL REFERENCES conversations,
  position bigint NOT NULL,
  project_id text NOT NULL,
  id text NOT NULL,
  body text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  deleted_at timestamptz,
  PRIMARY KEY (conversation_id, position)
);

CREATE INDEX items_by_id ON items (conversation_id, id);

CREATE TABLE turns (
  id text PRIMARY KEY,
  project_id text NOT NULL REFERENCES projects,
  conversation_id text NOT NULL REFERENCES conversations,
  status text NOT NULL CHECK (
    status IN ('queued', 'admitted', 'running', 'completed', 'incomplete', 'failed', 'cancelled')),
  admitted_on date NOT NULL DEFAULT (now() AT TIME ZONE 'UTC')::date,
  queue_position bigint GENERATED ALWAYS AS IDENTITY,
  agent text NOT NULL,
  agent_version text NOT NULL,
  model text NOT NULL,
  request text NOT NULL,
  request_hash bytea NOT NULL,
  idempotency_key text,
  api_key_id text,
  disconnected_at timestamptz,
  reattached_at timestamptz,
  limits text NOT NULL,
  deadline_at timestamptz NOT NULL,
  run_id text,
  cancel_requested_at timestamptz,
  output text,
  usage text,
  failure text,
  incomplete_reason text,
  pending_calls text NOT NULL DEFAULT '[]',
  end_position bigint,
  created_at timestamptz NOT NULL DEFAULT now(),
  started_at timestamptz,
  ended_at timestamptz,
  hidden_at timestamptz
);

CREATE UNIQUE INDEX turns_by_idempotency_key ON turns (project_id, idempotency_key)
  WHERE idempotency_key IS NOT NULL;
CREATE INDEX turns_by_project ON turns (project_id, created_at DESC, id DESC);
CREATE INDEX turns_by_conversation ON turns (conversation_id, queue_position);
CREATE INDEX turns_by_request ON turns (project_id, request_hash, created_at);
CREATE INDEX turns_unfinished ON turns (created_at)
  WHERE status IN ('queued', 'admitted', 'running');

-- The narrow row that numbers a turn's events; the lock on it orders them.
CREATE TABLE turn_heads (
  turn_id text PRIMARY KEY REFERENCES turns,
  admitted_on date NOT NULL,
  next_sequence_number bigint NOT NULL,
  next_output_index int NOT NULL DEFAULT 0
);

CREATE TABLE turn_events (
  admitted_on date NOT NULL,
  turn_id text NOT NULL,
  sequence_number bigint NOT NULL,
  body text NOT NULL,
  PRIMARY KEY (admitted_on, turn_id, sequence_number)
) PARTITION BY RANGE (admitted_on);

-- Catches what the janitor's partitions do not; normally empty.
CREATE TABLE turn_events_default PARTITION OF turn_events DEFAULT;

-- A step's row is its claim, its fence and its result.
CREATE TABLE steps (
  turn_id text NOT NULL REFERENCES turns,
  number int NOT NULL,
  kind text NOT NULL CHECK (kind IN ('model', 'tool')),
  name text NOT NULL,
  call text,
  state text NOT NULL CHECK (state IN ('scheduled', 'running', 'finished', 'abandoned')),
  run_id text,
  attempt int NOT NULL DEFAULT 0,
  token text,
  flushed int NOT NULL DEFAULT 0,
  -- When the owner of a head start was last known to live.
  seen_at timestamptz,
  verdict text,
  items text,
  output text,
  started_at timestamptz,
  finished_at timestamptz,
  PRIMARY KEY (turn_id, number)
);

-- The ledger: one row for every call to a provider, written before its request leaves.
CREATE TABLE model_calls (
  id text PRIMARY KEY,
  project_id text NOT NULL,
  turn_id text NOT NULL REFERENCES turns,
  step int NOT NULL,
  run_id text NOT NULL,
  attempt int NOT NULL,
  model text NOT NULL,
  response_id text,
  request_id text,
  outcome text NOT NULL DEFAULT 'open' CHECK (outcome IN ('open', 'used', 'wasted')),
  certainty text NOT NULL DEFAULT 'unknown' CHECK (certainty IN ('exact', 'unknown')),
  failure_class text,
  input_tokens bigint,
  cached_tokens bigint,
  cache_write_tokens bigint,
  output_tokens bigint,
  reasoning_tokens bigint,
  cost_usd numeric,
  started_at timestamptz NOT NULL DEFAULT now(),
  ended_at timestamptz
);

CREATE INDEX model_calls_by_turn ON model_calls (turn_id, step);

-- Work that one process of a deployment does at a time.
CREATE TABLE leases (
  id text PRIMARY KEY,
  until timestamptz NOT NULL
);
