/** What checks the files of `deploy/`: programs that others keep, each of which may be missing on a machine. */
import { execFile } from 'node:child_process';
import { access, constants, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { homedir, tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';
import { findPythonTools } from '../support/python-tools.ts';

/** A check of the files in a folder that is laid out like `deploy/`. */
export interface DeployCheck {
  /** What is checked, and against what. */
  readonly name: string;
  readonly program: string;
  /** Where the program comes from when it is not there: of PyPI, or as a sentence for people. */
  readonly from: 'PyPI' | string;
  /** Returns what it found, a line each; none when all is well. `program` is its path. */
  run(program: string, deploy: string): Promise<string[]>;
}

/** Below this, `systemd-analyze security` calls a unit well hardened. */
const MOST_EXPOSED = 3;
/** The release of Kubernetes that the chart is checked against. A Helm that was built without its makefile takes itself for an old one's. */
const KUBERNETES = '1.31';
/** What the chart can't do without. */
export const CHART_VALUES: readonly string[] = [
  'database.secretName=mooring-database',
  'temporal.address=temporal.example:7233',
  'authority.secretName=mooring-authority',
  'sleds.url=https://sleds.example:12221',
];
/** With all that can be switched on. */
export const WHOLE_CHART_VALUES: readonly string[] = [
  ...CHART_VALUES,
  'database.migrateSecretName=owner',
  'api.tlsSecretName=tls',
  'metrics.podMonitor=true',
];

const GO = (module: string) => `go install ${module}`;
const HELM = GO('helm.sh/helm/v3/cmd/helm@v3.22.0');
const PROMTOOL = GO('github.com/prometheus/prometheus/cmd/promtool@v0.316.0');
const SYSTEMD = 'systemd 250 or later has it';
const rules = (deploy: string) => join(deploy, 'prometheus/mooring-rules.yaml');
const chart = (deploy: string) => join(deploy, 'helm/mooring');

export const DEPLOY_CHECKS: readonly DeployCheck[] = [
  {
    name: 'the Dockerfile',
    program: 'hadolint',
    from: 'PyPI',
    run: async (hadolint, deploy) => findings(await runTool(hadolint, ['--no-color', dockerfile(deploy)])),
  },
  {
    name: 'the compose file, by the Compose Specification’s schema',
    program: 'check-jsonschema',
    from: 'PyPI',
    run: async (checker, deploy) =>
      findings(
        await runTool(checker, ['--builtin-schema', 'vendor.compose-spec', join(deploy, 'compose/compose.yaml')]),
      ),
  },
  {
    name: 'the chart',
    program: 'helm',
    from: HELM,
    run: async (helm, deploy) =>
      (
        await Promise.all(
          [CHART_VALUES, WHOLE_CHART_VALUES].map(async (values) =>
            findings(await runTool(helm, ['lint', '--strict', '--quiet', chart(deploy), ...chartOptions(values)])),
          ),
        )
      ).flat(),
  },
  {
    name: `what the chart makes, by the schemas of Kubernetes ${KUBERNETES}`,
    program: 'kubernetes-validate',
    from: 'PyPI',
    run: async (validate, deploy) => {
      const helm = await findProgram('helm');
      if (helm === null) throw new NotThere(`it needs helm: ${HELM}`);
      const folder = await mkdtemp(join(tmpdir(), 'mooring-chart-'));
      try {
        const found: string[] = [];
        for (const values of [CHART_VALUES, WHOLE_CHART_VALUES]) {
          const made = await templateChart(helm, deploy, values);
          if (!made.good) return findings(made);
          const file = join(folder, 'made.yaml');
          await writeFile(file, made.stdout);
          // Of the operator's own kinds (PodMonitor) there is no schema: that is a warning.
          const options = ['--strict', '--quiet', '--no-warn', '--kubernetes-version', KUBERNETES];
          found.push(...findings(await runTool(validate, [...options, file])));
        }
        return found;
      } finally {
        await rm(folder, { recursive: true, force: true });
      }
    },
  },
  {
    name: 'the units',
    program: 'systemd-analyze',
    from: SYSTEMD,
    run: async (analyze, deploy) =>
      (await Promise.all((await units(deploy)).map((unit) => verifyUnit(analyze, unit)))).flat(),
  },
  {
    name: `how the units are hardened: an exposure below ${MOST_EXPOSED}`,
    program: 'systemd-analyze',
    from: SYSTEMD,
    run: async (analyze, deploy) =>
      (await Promise.all((await units(deploy)).map((unit) => judgeExposure(analyze, unit)))).flat(),
  },
  {
    name: 'the rules for Prometheus',
    program: 'promtool',
    from: PROMTOOL,
    run: async (promtool, deploy) =>
      findings(await runTool(promtool, ['check', 'rules', '--lint=all', '--lint-fatal', rules(deploy)])),
  },
  {
    name: 'when the rules fire',
    program: 'promtool',
    from: PROMTOOL,
    run: async (promtool, deploy) =>
      findings(await runTool(promtool, ['test', 'rules', join(deploy, 'prometheus/mooring-rules.test.yaml')])),
  },
];

/** A check that can't be run here; its message says why. */
export class NotThere extends Error {
  override readonly name = 'NotThere';
}

/** Runs a check on a folder like `deploy/`, and returns what it found. Throws {@link NotThere} when its program can't be had. */
export async function runCheck(check: DeployCheck, deploy: string): Promise<string[]> {
  return check.run(await programOf(check), deploy);
}

async function programOf({ program, from }: DeployCheck): Promise<string> {
  const found = await findProgram(program);
  if (found !== null) return found;
  if (from !== 'PyPI') throw new NotThere(`${program} is not here: ${from}`);
  const bin = await findPythonTools('deploy-linters').catch((error: Error) => {
    throw new NotThere(`${program} is not here, and PyPI's can't be had: ${error.message}`);
  });
  return join(bin, program);
}

/** A program's path: on PATH, or where Go puts what it installs. `null`: it is not there. */
export async function findProgram(program: string): Promise<string | null> {
  const { PATH = '', GOBIN = '' } = process.env;
  for (const folder of [...PATH.split(delimiter), GOBIN, join(homedir(), 'go/bin')]) {
    const path = join(folder, program);
    const isThere = () =>
      access(path, constants.X_OK).then(
        () => true,
        () => false,
      );
    if (folder !== '' && (await isThere())) return path;
  }
  return null;
}

/** What the chart makes of some values, or Helm's complaint. */
export function templateChart(helm: string, deploy: string, values: readonly string[]): Promise<Ran> {
  return runTool(helm, ['template', 'm', chart(deploy), ...chartOptions(values)]);
}

function chartOptions(values: readonly string[]): string[] {
  return ['--kube-version', `${KUBERNETES}.0`, ...values.flatMap((value) => ['--set', value])];
}

interface Ran {
  /** Whether it ended with 0. */
  readonly good: boolean;
  readonly stdout: string;
  /** All that it printed, or what kept it from running. */
  readonly said: string;
}

async function runTool(program: string, args: readonly string[]): Promise<Ran> {
  try {
    const { stdout, stderr } = await promisify(execFile)(program, [...args], { maxBuffer: 64 * 1024 ** 2 });
    return { good: true, stdout, said: stdout + stderr };
  } catch (error) {
    const { stdout = '', stderr = '', message } = error as { stdout?: string; stderr?: string; message: string };
    return { good: false, stdout, said: `${stdout}${stderr}`.trim() || message };
  }
}

const lines = (text: string) => text.split('\n').filter((line) => line.trim() !== '');

function findings({ good, said }: Ran): string[] {
  return good ? [] : lines(said);
}

const dockerfile = (deploy: string) => join(deploy, 'container/Dockerfile');

async function units(deploy: string): Promise<string[]> {
  const folder = join(deploy, 'systemd');
  return (await readdir(folder)).sort().map((unit) => join(folder, unit));
}

async function verifyUnit(analyze: string, unit: string): Promise<string[]> {
  const { good, said } = await runTool(analyze, ['verify', unit]);
  // It speaks of the machine's own units, too. And the program is not installed here.
  const ours = lines(said).filter((line) => line.includes('mooring-'));
  if (ours.length === 0 && !good) return lines(said);
  return ours.filter((line) => !/is not executable: No such file/.test(line));
}

async function judgeExposure(analyze: string, unit: string): Promise<string[]> {
  const { said } = await runTool(analyze, ['security', '--offline=true', unit]);
  const exposure = /Overall exposure level for \S+: ([\d.]+)/.exec(said)?.[1];
  if (exposure === undefined) return [`${unit}: its exposure can't be told: ${said}`];
  return Number(exposure) < MOST_EXPOSED ? [] : [`${unit}: its exposure is ${exposure}`];
}
