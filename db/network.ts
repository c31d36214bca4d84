/**
 * The network's side of an instance's life, behind one interface: what must know where each instance lives. It gives
 * statements, not calls, so that they ride in the transactions that move the instance: the network knows a place before
 * the guest may run there, follows a migration in the very transaction that moves it, and forgets it before Stopped or
 * Failed is shown. Nothing here speaks to a switch or a sled, so none of them can hold up a start or an update: sled
 * agents poll (`queries/read-network-changes.ts`).
 */
import { type SQL, sql } from 'drizzle-orm';

export interface InstanceNetwork {
  /**
   * A statement, whole or as a CTE, that makes the network know where instances live. `places` is a query that yields
   * `instance_id`, `sled_id`, `vmm_id`, `ip` and `port`. Changes nothing where the network knows it already.
   */
  ensure(places: SQL): SQL;
  /**
   * A statement, whole or as a CTE, that makes the network forget instances. `instances` is a query that yields
   * `instance_id`, and `vmm_id`: the VMM that the network must know the instance by for it to be forgotten, or NULL for
   * whichever it is. Changes nothing where it was forgotten already.
   */
  remove(instances: SQL): SQL;
}

/** The network as a table, with a generation per instance. */
export const network: InstanceNetwork = {
  ensure: (places) => sql`
    INSERT INTO instance_network AS known (instance_id, sled_id, vmm_id, ip, port)
    SELECT place.instance_id, place.sled_id, place.vmm_id, place.ip, place.port FROM (${places}) place
    ON CONFLICT (instance_id) DO UPDATE SET sled_id = excluded.sled_id, vmm_id = excluded.vmm_id, ip = excluded.ip,
      port = excluded.port, generation = known.generation + 1, changed_in = pg_current_xact_id(), time_modified = now()
    WHERE known.vmm_id IS DISTINCT FROM excluded.vmm_id`,
  remove: (instances) => sql`
    UPDATE instance_network known SET sled_id = NULL, vmm_id = NULL, ip = NULL, port = NULL,
      generation = known.generation + 1, changed_in = pg_current_xact_id(), time_modified = now()
    FROM (${instances}) gone
    WHERE known.instance_id = gone.instance_id AND known.vmm_id IS NOT NULL
      AND (gone.vmm_id IS NULL OR known.vmm_id = gone.vmm_id)`,
};
