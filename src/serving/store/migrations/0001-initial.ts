/** @file First schema: tenants, keys, adapters, grants, usage, quotas. Never changed once released; what follows is a new file. */
export const initial = `
CREATE TABLE meta (
  key text PRIMARY KEY,
  value text NOT NULL
);

CREATE TABLE tenants (
  id text PRIMARY KEY,
  name text NOT NULL,
  weight double precision NOT NULL CHECK (weight > 0),
  limits jsonb NOT NULL,
  built_in boolean NOT NULL,
  disabled boolean NOT NULL,
  created_at timestamp with time zone NOT NULL
);
INSERT INTO tenants VALUES ('admin', 'Administrators', 1, '{}', true, false, now());

CREATE TABLE keys (
  id text PRIMARY KEY,
  tenant text NOT NULL CONSTRAINT keys_tenant_fkey REFERENCES tenants (id) ON DELETE CASCADE,
  hash text NOT NULL CONSTRAINT keys_hash UNIQUE,
  prefix text NOT NULL,
  label text NOT NULL,
  role text NOT NULL CHECK (role IN ('admin', 'tenant')),
  created_at timestamp with time zone NOT NULL,
  expires_at timestamp with time zone,
  revoked_at timestamp with time zone,
  last_used_at timestamp with time zone,
  CHECK ((role = 'admin') = (tenant = 'admin'))
);
CREATE INDEX keys_tenant ON keys (tenant);

CREATE TABLE adapters (
  id text PRIMARY KEY,
  owner text CONSTRAINT adapters_owner_fkey REFERENCES tenants (id),
  name text NOT NULL,
  digest text NOT NULL,
  method text NOT NULL,
  rank integer,
  bytes bigint NOT NULL,
  backbone text,
  pinned boolean NOT NULL,
  created_at timestamp with time zone NOT NULL,
  CONSTRAINT adapters_owner_name UNIQUE NULLS NOT DISTINCT (owner, name)
);
CREATE INDEX adapters_digest ON adapters (digest);

CREATE TABLE grants (
  adapter text NOT NULL CONSTRAINT grants_adapter_fkey REFERENCES adapters (id) ON DELETE CASCADE,
  tenant text NOT NULL CONSTRAINT grants_tenant_fkey REFERENCES tenants (id) ON DELETE CASCADE,
  created_at timestamp with time zone NOT NULL,
  PRIMARY KEY (adapter, tenant)
);
CREATE INDEX grants_tenant ON grants (tenant);

CREATE TABLE usage (
  tenant text NOT NULL CONSTRAINT usage_tenant_fkey REFERENCES tenants (id) ON DELETE CASCADE,
  key text NOT NULL,
  adapter text NOT NULL,
  hour timestamp with time zone NOT NULL,
  requests bigint NOT NULL,
  prompt_tokens bigint NOT NULL,
  completion_tokens bigint NOT NULL,
  PRIMARY KEY (tenant, hour, adapter, key)
);
CREATE INDEX usage_hour ON usage (hour);

CREATE TABLE writers (
  id text PRIMARY KEY,
  batch bigint NOT NULL,
  at timestamp with time zone NOT NULL
);

CREATE TABLE quota_windows (
  tenant text NOT NULL CONSTRAINT quota_windows_tenant_fkey REFERENCES tenants (id) ON DELETE CASCADE,
  "window" text NOT NULL CHECK ("window" IN ('day')),
  starts_at timestamp with time zone NOT NULL,
  tokens bigint NOT NULL,
  PRIMARY KEY (tenant, "window", starts_at)
);
`;
