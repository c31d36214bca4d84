/**
 * `npm run histories [NAME…]`: brings about every recording of `recordings.ts` (or those named) on a stack of its own, and
 * writes each history whose shape is new into `test/histories/`, beside those that are there: what old builds left must go
 * on to replay.
 */
import { execFile } from 'node:child_process';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { findTemporalBinary } from '../../stack/temporal-binary.ts';
import { historyShape, recordedHistory } from './history-shape.ts';
import { startRecorder } from './recorder.ts';
import { RECORDINGS } from './recordings.ts';

const folder = fileURLToPath(new URL('../histories/', import.meta.url));
/** What the server notes for itself, and who worked on it: no replay reads it. */
const LEFT_OUT = new Set(['identity', 'meteringMetadata', 'requestId', 'taskId', 'workerVersion']);

/** What names the machine that recorded it says nothing of the workflow, and where its code stood neither. */
function portable(key: string, value: unknown): unknown {
  if (LEFT_OUT.has(key)) return undefined;
  if (key === 'stackTrace') return '';
  if (key === 'originalExecutionRunIdentity') return 'recorder';
  if (key === 'name' && typeof value === 'string') return value.replace(/^\d+@[^-]*/, 'recorder');
  return value;
}

/** The recorded histories of a name, by their numbers. */
async function recorded(name: string): Promise<{ number: number; shape: string }[]> {
  const files = (await readdir(folder)).filter((file) => file.startsWith(`${name}.`) && /\.\d{4}\.json$/.test(file));
  return Promise.all(
    files.map(async (file) => ({
      number: Number(file.slice(-9, -5)),
      shape: historyShape(recordedHistory.parse(JSON.parse(await readFile(folder + file, 'utf8')))),
    })),
  );
}

const wanted = process.argv.slice(2);
const unknown = wanted.filter((name) => RECORDINGS[name] === undefined);
if (unknown.length > 0) {
  console.error(`no recording "${unknown.join('", "')}"; there are:\n  ${Object.keys(RECORDINGS).join('\n  ')}`);
  process.exit(1);
}
const { path: binary } = await findTemporalBinary();
const recorder = await startRecorder();
const { harness } = recorder;
let failed = 0;
try {
  await mkdir(folder, { recursive: true });
  for (const [name, bringAbout] of Object.entries(RECORDINGS)) {
    if (wanted.length > 0 && !wanted.includes(name)) continue;
    try {
      const { workflowId, runId } = await bringAbout(recorder);
      await recorder.clear();
      await harness.temporal.workflow
        .getHandle(workflowId, runId, { followRuns: false })
        .result()
        .catch(() => {});
      const { stdout } = await promisify(execFile)(
        binary,
        [
          ...['workflow', 'show', '--workflow-id', workflowId, ...(runId === undefined ? [] : ['--run-id', runId])],
          ...['--output', 'json', '--address', harness.stack.temporalAddress],
        ],
        { maxBuffer: 64 * 1024 * 1024 },
      );
      const history = recordedHistory.parse(JSON.parse(stdout, portable));
      const shape = historyShape(history);
      const before = await recorded(name);
      const same = before.find((one) => one.shape === shape);
      if (same !== undefined) {
        console.log(`known  ${name} (${String(same.number).padStart(4, '0')})`);
        continue;
      }
      const number = String(Math.max(0, ...before.map((one) => one.number)) + 1).padStart(4, '0');
      await writeFile(`${folder}${name}.${number}.json`, `${JSON.stringify(history)}\n`);
      console.log(`NEW    ${name} (${number}, ${history.events.length} events)`);
    } catch (error) {
      failed += 1;
      console.error(`FAILED ${name}: ${error instanceof Error ? error.message : error}`);
    } finally {
      await recorder.clear();
    }
  }
} finally {
  await harness.close();
}
process.exitCode = failed === 0 ? 0 : 1;
