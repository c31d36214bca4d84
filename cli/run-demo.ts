import { fileURLToPath } from 'node:url';
import { startStack } from '../stack/stack.ts';
import { colours } from './format.ts';
import { paintState, table } from './output.ts';
import { type InstanceSize, playScenario, type StepResult } from './play-scenario.ts';
import { type HypervisorChoice, startUntilSignal } from './processes.ts';
import { readScenario } from './scenario.ts';

const DEMO = fileURLToPath(new URL('./demo.yaml', import.meta.url));

/**
 * Brings up a stack, plays a scenario and prints each step as it ends. Returns whether every step ended as the scenario expects.
 * With `keep`, everything runs on until Ctrl-C. Throws when the stack can't be brought up or the scenario can't be read.
 */
export async function runDemo(options: {
  readonly keep?: boolean;
  readonly scenarioFile?: string | undefined;
  readonly hypervisor: HypervisorChoice;
  readonly sledTls?: boolean;
}): Promise<boolean> {
  const scenario = await readScenario(options.scenarioFile ?? DEMO);
  const { started: stack, shutdown } = await startUntilSignal((signal) =>
    startStack({
      sleds: 3,
      hypervisor: options.hypervisor,
      sledTls: options.sledTls,
      reconcileEveryMs: 1_000,
      signal,
      onProgress: (message) => console.log(`${colours.green('✓')} ${message}`),
    }),
  );
  try {
    if (stack.consoleUrl !== null) console.log(`${colours.green('✓')} watch it at ${colours.cyan(stack.consoleUrl)}`);
    console.log();
    const played = playScenario(stack, scenario, printStep, instanceSize(options.hypervisor));
    const results = await Promise.race([played, shutdown]);
    if (results === undefined) {
      played.catch(() => {});
      return false;
    }
    const allAsExpected = results.every((result) => result.problems.length === 0);
    console.log(`\n${summary(results)}\n`);
    console.log(
      allAsExpected
        ? colours.green('Every step ended as the scenario says.')
        : colours.red('Not every step ended as the scenario says.'),
    );
    if (options.keep) {
      const { apiUrl, consoleUrl, temporalUiUrl } = stack;
      const shown = consoleUrl === null ? `API ${apiUrl}` : `console ${consoleUrl}`;
      console.log(`Everything is left running: ${shown}, Web UI ${temporalUiUrl}. Ctrl-C stops it.`);
      await shutdown;
    }
    return allAsExpected;
  } finally {
    await stack.stop();
  }
}

/** Real guests share this machine, so they are small. */
function instanceSize(hypervisor: HypervisorChoice): InstanceSize {
  return hypervisor === 'qemu' ? { ncpus: 1, memory: 128 * 1024 ** 2 } : { ncpus: 2, memory: 1024 ** 3 };
}

function printStep(result: StepResult): void {
  const mark = result.problems.length === 0 ? colours.green('✓') : colours.red('✗');
  console.log(
    `${mark} ${colours.bold(result.title)}${result.externalState === '' ? '' : `  → ${paintState(result.externalState)}`}  ${colours.dim(`${Math.round(result.ms)} ms`)}`,
  );
  if (result.call !== 'succeeded') console.log(`    the caller was told ${colours.yellow(result.call)}`);
  if (result.counted !== null)
    console.log(`    its guest counts: ${colours.cyan(`${result.counted.before} → ${result.counted.after}`)}`);
  for (const problem of result.problems) console.log(`    ${colours.red(problem)}`);
  if (result.link !== null) console.log(`    ${colours.dim(result.link)}`);
}

function summary(results: StepResult[]): string {
  return table(
    ['STEP', 'CALL', 'SHOWN', 'MS', 'AS EXPECTED'],
    results.map((result) => [
      result.title,
      result.call.split(':')[0] ?? '',
      result.externalState === '' ? '-' : paintState(result.externalState),
      String(Math.round(result.ms)),
      result.problems.length === 0 ? colours.green('yes') : colours.red(result.problems.join('; ')),
    ]),
  );
}
