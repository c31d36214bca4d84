/** `npm run three-servers`: plays docs/install.md, word for word, on three Debian systems. See `--help`. */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Command } from 'commander';
import { colours } from '../../cli/format.ts';
import { makeDownloads } from './downloads.ts';
import { readPage, type Step } from './page.ts';
import { ThreeServers } from './servers.ts';

const PAGE = fileURLToPath(new URL('../../docs/install.md', import.meta.url));
const LAST_LINES = 40;
const print = (message: string) => console.log(`${colours.dim('·')} ${message}`);

/** Does a step. Throws, with what was printed last, when a command of it fails. */
async function play(servers: ThreeServers, step: Step, verbose: boolean): Promise<void> {
  switch (step.kind) {
    case 'copy':
      for (const copy of step.copies) await servers.copy(copy);
      return;
    case 'off':
      return servers.off(step.server);
    case 'back':
      return servers.boot(step.server);
    case 'run':
      for (const number of step.on) {
        const { code, output } = await servers.run(number, step.script);
        if (verbose) console.log(colours.dim(output));
        if (code !== 0)
          throw new Error(
            `mooring-${number}, line ${step.line} of docs/install.md, ended with ${code}:\n${output.split('\n').slice(-LAST_LINES).join('\n')}`,
          );
      }
  }
}

const said = (step: Step) =>
  step.kind === 'run'
    ? `on ${step.on.map((number) => `mooring-${number}`).join(', ')}`
    : step.kind === 'copy'
      ? 'files from server to server'
      : `mooring-${step.server} ${step.kind === 'off' ? 'loses its power' : 'is back'}`;

async function playPage({ keep, verbose = false }: { keep?: boolean; verbose?: boolean }): Promise<void> {
  if (process.getuid?.() !== 0) throw new Error('only root may give systems namespaces of their own');
  const steps = readPage(await readFile(PAGE, 'utf8'));
  const folder = await mkdtemp('/var/tmp/mooring-three-servers-');
  const servers = new ThreeServers(folder);
  const signalled = new Promise<never>((_, reject) => {
    // A second one, as npm passes it on, must not end it before the servers have.
    for (const signal of ['SIGINT', 'SIGTERM'] as const)
      process.on(signal, () => reject(new Error(`ended by ${signal}`)));
  });
  signalled.catch(() => {});
  try {
    await Promise.race([signalled, playSteps(servers, steps, folder, verbose)]);
  } catch (error) {
    if (!keep) throw error;
    console.error(`${colours.red('error:')} ${error instanceof Error ? error.message : error}`);
    process.exitCode = 1;
  } finally {
    if (keep) {
      for (const number of [1, 2, 3]) print(await servers.howToEnter(number).catch(() => `mooring-${number} is off`));
      print('Ctrl-C ends them');
      await signalled.catch(() => {});
    }
    await servers.stop();
    await rm(folder, { recursive: true, force: true });
  }
}

async function playSteps(
  servers: ThreeServers,
  steps: readonly Step[],
  folder: string,
  verbose: boolean,
): Promise<void> {
  await makeDownloads(join(folder, 'downloads'), print);
  await servers.start(join(folder, 'downloads'), print);
  let heading = '';
  for (const step of steps) {
    if (step.heading !== heading) console.log(colours.bold(step.heading));
    ({ heading } = step);
    const beganMs = performance.now();
    await play(servers, step, verbose);
    console.log(
      `${colours.green('✓')} ${said(step)} ${colours.dim(`line ${step.line}, ${((performance.now() - beganMs) / 1000).toFixed(1)} s`)}`,
    );
  }
  console.log(`${steps.length} steps of docs/install.md, as they stand there`);
}

await new Command('three-servers')
  .description(
    'Plays docs/install.md, word for word, on three Debian systems in namespaces of their own. Needs root, and Go once.',
  )
  .option('--keep', 'keep them running at the end, or where a step fails, to look at')
  .option('--verbose', 'show what commands print')
  .action(playPage)
  .parseAsync()
  .catch((error: unknown) => {
    console.error(`${colours.red('error:')} ${error instanceof Error ? error.message : error}`);
    process.exitCode = 1;
  });
