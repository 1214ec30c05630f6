/** @file When the database's clock is set back, what a server had that has died is not its own until the clock has caught up. */

/** `milora_quotas` as before, but for what is done when a bucket's time lies ahead. */
export const setBack: readonly string[] = [
  `CREATE OR REPLACE FUNCTION milora_quotas(_server text, _lease_s double precision, _at timestamptz, _entries jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
  e jsonb;
  b quota_buckets;
  who text;
  moment timestamptz;
  passed double precision;
  rpm double precision;
  tpm double precision;
  tpd double precision;
  most integer;
  running integer;
  reserved double precision;
  own_running integer;
  own_reserved double precision;
  used double precision;
  estimate double precision;
  seconds double precision;
  longest double precision;
  which text;
  outcomes jsonb;
  answers jsonb := '{}';
BEGIN
  -- In one order by all servers, so that none waits for one that waits for it.
  FOR e IN SELECT value FROM jsonb_array_elements(_entries) ORDER BY value->>'tenant' COLLATE "C" LOOP
    who := e->>'tenant';
    rpm := (e->'limits'->>'requestsPerMinute')::double precision;
    tpm := (e->'limits'->>'tokensPerMinute')::double precision;
    tpd := (e->'limits'->>'tokensPerDay')::double precision;
    most := least((e->'limits'->>'maxConcurrent')::double precision, 2147483647)::integer;
    INSERT INTO quota_buckets VALUES (who, NULL, NULL, coalesce(_at, clock_timestamp())) ON CONFLICT DO NOTHING;
    SELECT * INTO b FROM quota_buckets q WHERE q.tenant = who FOR UPDATE;
    moment := coalesce(_at, clock_timestamp());
    passed := greatest(0, extract(epoch FROM moment - b.at)) / 60;
    -- A clock that is set back fills nothing, and is gone by when it was not just a turn late. What servers have is then theirs
    -- for no longer than if they had just said so.
    IF moment < b.at AND moment > b.at - interval '1 minute' THEN moment := b.at;
    ELSIF moment < b.at THEN
      UPDATE quota_leases l SET expires_at = least(l.expires_at, moment + make_interval(secs => _lease_s)) WHERE l.tenant = who;
    END IF;
    b.requests := least(rpm, coalesce(b.requests + passed * rpm, rpm));
    b.tokens := least(tpm, coalesce(b.tokens + passed * tpm, tpm) + (e->>'back')::double precision);
    SELECT coalesce(sum(l.running), 0), coalesce(sum(l.reserved), 0) INTO running, reserved
      FROM quota_leases l WHERE l.tenant = who AND l.server <> _server AND l.expires_at > moment;
    own_running := (e->>'running')::integer;
    own_reserved := (e->>'reserved')::double precision;
    running := running + own_running;
    reserved := reserved + own_reserved;
    SELECT coalesce(max(w.tokens), 0) INTO used FROM quota_windows w
      WHERE w.tenant = who AND w."window" = 'day' AND w.starts_at = date_trunc('day', moment, 'UTC');
    outcomes := '[]';
    FOR estimate IN SELECT value::double precision FROM jsonb_array_elements_text(e->'asks') LOOP
      which := NULL;
      longest := 0;
      IF running >= most THEN
        which := 'maxConcurrent';
        longest := 1;
      END IF;
      IF 1 - b.requests > rpm * 1e-12 THEN
        seconds := greatest(1, ceil((1 - b.requests) * 60 / rpm - 1e-9));
        IF seconds > longest THEN which := 'requestsPerMinute'; longest := seconds; END IF;
      END IF;
      IF least(estimate, tpm) - b.tokens > tpm * 1e-12 THEN
        seconds := greatest(1, ceil((least(estimate, tpm) - b.tokens) * 60 / tpm - 1e-9));
        IF seconds > longest THEN which := 'tokensPerMinute'; longest := seconds; END IF;
      END IF;
      IF used + reserved + least(estimate, tpd) > tpd THEN
        seconds := greatest(1, ceil(extract(epoch FROM date_trunc('day', moment, 'UTC') + interval '1 day' - moment)));
        IF seconds > longest THEN which := 'tokensPerDay'; longest := seconds; END IF;
      END IF;
      IF which IS NULL THEN
        b.requests := b.requests - 1;
        b.tokens := b.tokens - estimate;
        running := running + 1;
        own_running := own_running + 1;
        reserved := reserved + estimate;
        own_reserved := own_reserved + estimate;
        outcomes := outcomes || 'null'::jsonb;
      ELSE
        outcomes := outcomes || jsonb_build_array(jsonb_build_array(which, longest));
      END IF;
    END LOOP;
    UPDATE quota_buckets q SET requests = b.requests, tokens = b.tokens, at = moment WHERE q.tenant = who;
    IF own_running > 0 OR own_reserved > 0 THEN
      INSERT INTO quota_leases AS l VALUES (who, _server, own_running, own_reserved::bigint, moment + make_interval(secs => _lease_s))
        ON CONFLICT (tenant, server) DO UPDATE
        SET running = excluded.running, reserved = excluded.reserved, expires_at = excluded.expires_at;
    ELSE
      DELETE FROM quota_leases l WHERE l.tenant = who AND l.server = _server;
    END IF;
    DELETE FROM quota_leases l WHERE l.tenant = who AND l.expires_at <= moment;
    answers := answers || jsonb_build_object(who, outcomes);
  END LOOP;
  RETURN answers;
END $$`,
];
