/** @file Changes tell who listens: other servers of the database, which remember what it has answered. */

/** By table, with the transaction that changes it. Uses of a key are no change of it. */
const told: readonly (readonly [table: string, columns: string])[] = [
  ["tenants", "UPDATE OF weight, limits, disabled"],
  ["keys", "UPDATE OF tenant, hash, role, expires_at, revoked_at"],
  ["adapters", "UPDATE"],
  ["grants", "UPDATE"],
];

export const changes: readonly string[] = [
  `CREATE FUNCTION milora_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('milora_changed', TG_TABLE_NAME);
  RETURN NULL;
END $$`,
  ...told.map(
    ([table, update]) => `CREATE TRIGGER ${table}_changed AFTER INSERT OR DELETE OR ${update} ON ${table}
FOR EACH STATEMENT EXECUTE FUNCTION milora_changed()`,
  ),
];
