import { randomUUID } from 'node:crypto';
import { Refusal } from '../../model/refusal.ts';
import type { Database } from '../connect.ts';
import { refuseTakenName } from '../errors.ts';
import { sled } from '../schema.ts';

/** Adds a sled, in service. Throws a {@link Refusal} for a name or an address (`ip:port`) that another sled has. */
export async function addSled(
  db: Database,
  values: { name: string; address: string; threads: number; memoryBytes: number },
) {
  return refuseTakenName('sled_address', 'sled at address', values.address, () =>
    refuseTakenName('sled_name', 'sled', values.name, () =>
      db.transaction(async (transaction) => {
        const [row] = await transaction
          .insert(sled)
          .values({ id: randomUUID(), ...values })
          .returning();
        if (row === undefined) throw new Error('the sled was not returned');
        return row;
      }),
    ),
  );
}
