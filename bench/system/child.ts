/** Processes of the benchmark: each part that is measured runs alone in one, so that its CPU and memory are its own. */
import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

export interface BenchProcess<Ready> {
  readonly name: string;
  readonly pid: number;
  /** What it printed when it was ready. */
  readonly ready: Ready;
  /** Ends it in order; killed when that takes longer than 20 seconds. */
  stop(): Promise<void>;
}

/** Names a folder into which every process writes a CPU profile when it ends, for Chrome's developer tools; none when unset. */
const PROFILE_FOLDER = process.env.MOORING_BENCH_PROFILE;
const START_TIMEOUT_MS = 90_000;
const STOP_TIMEOUT_MS = 20_000;

/**
 * Runs a TypeScript file of `bench/` in a process of its own with `input` as its first argument, and waits for its first
 * line of JSON. It ends with this process, since it reads its standard input. Throws, with its output, when it ends first.
 */
export async function startProcess<Ready>(name: string, file: string, input: unknown): Promise<BenchProcess<Ready>> {
  const path = fileURLToPath(new URL(`../${file}`, import.meta.url));
  const profiling =
    PROFILE_FOLDER === undefined
      ? []
      : ['--cpu-prof', `--cpu-prof-dir=${join(PROFILE_FOLDER, name.replaceAll(' ', '-'))}`];
  const child = spawn(process.execPath, [...profiling, '--import', 'tsx', path, JSON.stringify(input)], {
    stdio: ['pipe', 'pipe', 'pipe'],
    // A Ctrl-C at the terminal is for the bench alone, which ends its processes in its own time.
    detached: true,
    env: { ...process.env, DBOS__CLOUD: '', SCARF_ANALYTICS: 'false', MOORING_LOG_LEVEL: 'error' },
  });
  const output: string[] = [];
  child.stderr.on('data', (chunk: Buffer) => {
    output.push(chunk.toString('utf8'));
    if (output.length > 50) output.shift();
  });
  const ready = await new Promise<Ready>((resolve, reject) => {
    const timer = setTimeout(
      () => reject(new Error(`${name} was not ready in time:\n${output.join('')}`)),
      START_TIMEOUT_MS,
    );
    createInterface({ input: child.stdout }).on('line', (line) => {
      if (!line.startsWith('{"ready"')) return;
      clearTimeout(timer);
      resolve((JSON.parse(line) as { ready: Ready }).ready);
    });
    child.once('exit', (code) => {
      clearTimeout(timer);
      reject(new Error(`${name} ended with exit code ${code}:\n${output.join('')}`));
    });
  }).catch((error: unknown) => {
    child.kill('SIGKILL');
    throw error;
  });
  return { name, pid: child.pid ?? 0, ready, stop: () => stopChild(child) };
}

async function stopChild(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  child.stdin?.end();
  const hard = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS);
  await gone;
  clearTimeout(hard);
}

/**
 * For the other end: reads this process's input, brings its part up, says that it is ready, and ends when its parent has
 * closed its standard input, or is gone.
 */
export async function runPart<Input, Ready>(
  start: (input: Input) => Promise<{ ready: Ready; stop: () => Promise<unknown> }>,
): Promise<void> {
  const closed = new Promise<void>((resolve) => {
    process.stdin.once('end', resolve);
    process.stdin.once('close', resolve);
    process.stdin.resume();
  });
  const { ready, stop } = await start(JSON.parse(process.argv[2] ?? '{}') as Input);
  process.stdout.write(`${JSON.stringify({ ready })}\n`);
  await closed;
  await stop();
  process.exit(0);
}
