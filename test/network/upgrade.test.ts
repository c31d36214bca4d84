import { chmod, cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { drizzle } from 'drizzle-orm/node-postgres';
import { migrate } from 'drizzle-orm/node-postgres/migrator';
import pg from 'pg';
import { expect, test } from 'vitest';
import { z } from 'zod';
import { migrateDatabase } from '../../db/connect.ts';
import { findNetworkDisagreements } from '../../db/queries/network.ts';
import { startEmbeddedPostgres } from '../../stack/embedded-postgres.ts';

const journalFile = z.looseObject({ entries: z.array(z.looseObject({ idx: z.number() })) });

test('an installation from before the network was kept: the instances that run are known after the upgrade', async () => {
  const folder = await mkdtemp(join(process.platform === 'win32' ? tmpdir() : '/var/tmp', 'mooring-upgrade-'));
  await chmod(folder, 0o711);
  const postgres = await startEmbeddedPostgres({ dataDir: join(folder, 'postgres'), durable: false });
  const client = new pg.Client({ connectionString: postgres.url });
  try {
    // The migrations as they were.
    const old = join(folder, 'migrations');
    await cp(fileURLToPath(new URL('../../db/migrations', import.meta.url)), old, { recursive: true });
    const file = join(old, 'meta', '_journal.json');
    const journal = journalFile.parse(JSON.parse(await readFile(file, 'utf8')));
    await writeFile(file, JSON.stringify({ ...journal, entries: journal.entries.filter((entry) => entry.idx < 2) }));
    await client.connect();
    const db = drizzle(client);
    await migrate(db, { migrationsFolder: old });

    await client.query(`
      INSERT INTO project (id, name, description) VALUES ('00000000-0000-4000-8000-000000000001', 'p', '');
      INSERT INTO sled (id, name, address, threads, memory_bytes) VALUES ('00000000-0000-4000-8000-000000000002', 's', '10.0.0.1:1', 8, 8);
      INSERT INTO instance (id, project_id, name, description, hostname, ncpus, memory_bytes, state, intended_state)
        SELECT ('00000000-0000-4000-8000-00000000001' || n)::uuid, '00000000-0000-4000-8000-000000000001', 'vm' || n, '', 'vm', 1, 1, 'no_vmm', 'running'
        FROM generate_series(1, 3) n;
      INSERT INTO vmm (id, instance_id, sled_id, ip, port, state, unwinding_since)
        SELECT ('00000000-0000-4000-8000-00000000002' || n)::uuid, ('00000000-0000-4000-8000-00000000001' || n)::uuid,
          '00000000-0000-4000-8000-000000000002', '10.0.0.1', 13000 + n, (CASE n WHEN 1 THEN 'running' ELSE 'saga_unwound' END)::vmm_state,
          CASE n WHEN 1 THEN NULL ELSE now() END
        FROM generate_series(1, 2) n;
      UPDATE instance SET state = 'vmm', active_vmm_id = vmm.id, state_generation = instance.state_generation + 1
        FROM vmm WHERE vmm.instance_id = instance.id;`);

    await migrateDatabase(postgres.url);
    expect(await findNetworkDisagreements(drizzle(client))).toEqual([]);
    const { rows } = await client.query('SELECT instance_id, port, generation::int FROM instance_network');
    expect(rows).toEqual([{ instance_id: '00000000-0000-4000-8000-000000000011', port: 13001, generation: 1 }]);
  } finally {
    await client.end();
    await postgres.stop();
    await rm(folder, { recursive: true, force: true });
  }
});
