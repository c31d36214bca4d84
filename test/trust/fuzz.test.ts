/**
 * The whole OpenAPI document, fuzzed: whatever is sent, nothing is answered with a 500, and who may not change anything
 * changes nothing.
 */
import { spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { sql } from 'drizzle-orm';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createToken } from '../../db/transactions/create-token.ts';
import { type Harness, startHarness } from '../support/harness.ts';
import { findPythonTools } from '../support/python-tools.ts';
import { type Belongings, dump, makeBelongings } from './every-request.ts';

/** A fuzzer of OpenAPI documents. Source: https://schemathesis.readthedocs.io */
const schemathesis = await findPythonTools('schemathesis').then(
  (bin) => join(bin, 'schemathesis'),
  (error: Error) => {
    console.warn(`SKIPPED: the OpenAPI document was not fuzzed: ${error.message}`);
    return null;
  },
);
/** How long one run may take, in milliseconds: stuck, not slow. */
const RUN_MS = 400_000;
const EXAMPLES = process.env.FUZZ_EXAMPLES ?? '2';
const SEED = process.env.FUZZ_SEED ?? '1';

describe.skipIf(schemathesis === null)('schemathesis', () => {
  let harness: Harness;
  let folder: string;
  let belongings: Belongings;
  beforeAll(async () => {
    harness = await startHarness({
      sleds: 1,
      reconcileEveryMs: 24 * 3_600_000,
      requireTokens: true,
      limits: { requestsPerMinute: null },
    });
    folder = await mkdtemp(join(tmpdir(), 'mooring-fuzz-'));
    belongings = await makeBelongings(harness.database.db);
  });
  afterAll(async () => {
    await harness?.close();
    if (folder !== undefined) await rm(folder, { recursive: true, force: true });
  });

  /** Fuzzes with a token, which the process list doesn't show, or with none. Returns its output when it found something. */
  async function fuzz(token: string | null, ...options: string[]): Promise<string> {
    // Where ids and names are, often those of things that are there: else nearly all that is asked is "not found".
    const config = [
      `generation.max-examples = ${EXAMPLES}`,
      // What a sled or the room for it lacks is answered with these; anything else above 499 is a fault.
      'checks.not_a_server_error.expected-statuses = ["2xx", "4xx", 503, 507]',
      '[headers]',
      'Prefer = "wait=0"',
      ...(token === null ? [] : [`Authorization = "Bearer \${FUZZ_TOKEN}"`]),
      '[parameters]',
      `"path.instance" = ["${belongings.instance}", "${belongings.member}"]`,
      `"path.sled_id" = ["${belongings.sled}"]`,
      `"query.project" = ["${belongings.projectName}"]`,
    ];
    const file = join(folder, 'schemathesis.toml');
    await writeFile(file, `${config.join('\n')}\n`);
    const child = spawn(
      schemathesis ?? '',
      [
        ...['--config-file', file, 'run', `${harness.stack.apiUrl}/openapi.json`, '--seed', SEED],
        ...['--checks', 'not_a_server_error', '--no-color', '--continue-on-failure', '--request-timeout', '60'],
        // A stream that is followed has no end: test/trust/event-stream.test.ts asks it what it must refuse.
        ...['--suppress-health-check', 'all', '--warnings', 'off', '--exclude-path', '/v1/events', ...options],
      ],
      { cwd: folder, env: { ...process.env, FUZZ_TOKEN: token ?? '' } },
    );
    const late = setTimeout(() => child.kill('SIGKILL'), RUN_MS);
    let output = '';
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (chunk) => {
        output += chunk;
      });
    const code = await new Promise<number | null>((resolve) => child.once('close', resolve));
    clearTimeout(late);
    if (process.env.FUZZ_SHOW) console.log(output);
    expect(output).toMatch(/Test cases:|generated|tested/i);
    return code === 0 ? '' : output.slice(-20_000);
  }

  /** How many requests of a token are on the audit log, by their result: the fuzzer was let in. */
  async function recorded(name: string, result: 'success' | 'error'): Promise<number> {
    const counted = await harness.database.db.execute(
      sql`SELECT count(*)::int AS count FROM audit_log WHERE actor_name = ${name} AND result = ${result}`,
    );
    return Number(counted.rows[0]?.count);
  }

  test('without a token nothing is answered with a 500, and nothing changes', { timeout: RUN_MS }, async () => {
    const before = await dump(harness.database.db);
    expect(await fuzz(null, '--exclude-path', '/vmms/{vmm_id}', '--phases', 'fuzzing')).toBe('');
    expect(await dump(harness.database.db)).toBe(before);
  });

  test('nor does a viewer change anything', { timeout: RUN_MS }, async () => {
    const { secret } = await createToken(harness.database.db, {
      name: 'fuzzing-viewer',
      role: 'viewer',
      projectId: null,
      expiresInSeconds: 3600,
    });
    const before = await dump(harness.database.db);
    expect(await fuzz(secret, '--exclude-path', '/vmms/{vmm_id}', '--phases', 'fuzzing')).toBe('');
    expect(await dump(harness.database.db)).toBe(before);
    expect(await recorded('fuzzing-viewer', 'error')).toBeGreaterThan(10);
    expect(await recorded('fuzzing-viewer', 'success')).toBe(0);
  });

  test('nor is an admin of one project answered with a 500', { timeout: RUN_MS }, async () => {
    const { secret } = await createToken(harness.database.db, {
      name: 'fuzzing-project',
      role: 'admin',
      projectId: belongings.project,
      expiresInSeconds: 3600,
    });
    const others = '/v1/system/(hardware|reconcilers)|/vmms';
    expect(await fuzz(secret, '--exclude-path-regex', others, '--phases', 'fuzzing')).toBe('');
    expect(await recorded('fuzzing-project', 'success')).toBeGreaterThan(0);
  });

  test('an admin may do everything, and is never answered with a 500', { timeout: RUN_MS }, async () => {
    expect(await fuzz(harness.stack.adminToken.secret)).toBe('');
  });
});
