/**
 * Which CPU models the guests of this machine can be given, and which one a guest gets that starts here.
 *
 * A guest keeps the CPU that it began with: one that finds another one behind it after a migration dies, at once or days later. So
 * a guest is given a model by its name, the same on every machine that offers it, and it moves only to where that is offered.
 * `host` passes on the CPU as it is, with all that it can: such a guest moves only between machines with the very same one.
 */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import type { Accelerator, QemuProgram } from './qemu-program.ts';

const cpuDefinition = z.object({
  name: z.string(),
  /** What this machine lacks for it; absent where QEMU can't tell. */
  'unavailable-features': z.array(z.string()).optional(),
  'migration-safe': z.boolean().optional(),
  'alias-of': z.string().optional(),
});
/** Source: qapi/machine-target.json of QEMU, `CpuDefinitionInfo`. */
export type CpuDefinition = z.infer<typeof cpuDefinition>;

/** What `--cpu-model` may say beside the name of a model. */
export const BASELINE = 'baseline';
export const HOST = 'host';
const MAX = 'max';

/**
 * What a guest gets by default under KVM, by the maker of the CPU: the first that this machine offers. Old enough to be on every
 * server that is still in use, new enough for the systems of today (x86-64-v2, which current distributions ask for; AMD's
 * oldest named model that has it is EPYC). No live migration is safe between the makers.
 */
const KVM_BASELINES: Readonly<Record<string, readonly string[]>> = {
  GenuineIntel: ['Nehalem-v1', 'qemu64-v1'],
  AuthenticAMD: ['EPYC-v1', 'Opteron_G3-v1', 'qemu64-v1'],
  HygonGenuine: ['Dhyana-v1', 'EPYC-v1', 'qemu64-v1'],
};
/** QEMU's own default, and the same in every version of it. */
const ANY_BASELINES = ['qemu64-v1'];

/** The named models that QEMU says this machine has all for, and that keep what they are; each by its own name. */
export function offeredModels(definitions: readonly CpuDefinition[]): string[] {
  return definitions
    .filter((each) => each['alias-of'] === undefined && each['migration-safe'] === true)
    .filter((each) => each['unavailable-features']?.length === 0)
    .map(({ name }) => name)
    .sort();
}

/**
 * Who made the CPU, and by what two machines show a guest the same one as `host`: by what it can, of /proc/cpuinfo, by the
 * version of QEMU and by what KVM adds to it or takes away, as its modules were loaded.
 */
export function identifyHostCpu(facts: Pick<CpuFacts, 'cpuinfo' | 'version' | 'kvm'>): { vendor: string; id: string } {
  const first = facts.cpuinfo.split(/\n\s*\n/)[0] ?? '';
  const field = (name: string) => new RegExp(`^${name}\\s*:\\s*(.*)$`, 'm').exec(first)?.[1]?.trim() ?? '';
  const vendor = field('vendor_id');
  const parts = [vendor, field('cpu family'), field('model'), field('stepping'), field('flags').split(/\s+/).sort()];
  parts.push(facts.version, [...facts.kvm].sort());
  return { vendor, id: createHash('sha256').update(JSON.stringify(parts)).digest('hex').slice(0, 16) };
}

export interface CpuFacts {
  readonly accelerator: Accelerator;
  readonly definitions: readonly CpuDefinition[];
  /** The text of /proc/cpuinfo. */
  readonly cpuinfo: string;
  /** QEMU's, which decides what its `max` and its `host` are. */
  readonly version: string;
  /** How KVM's modules were loaded, as far as a guest sees it: `kvm_intel.nested=1`. */
  readonly kvm: readonly string[];
}

/**
 * The models that guests here can be given, the one that a guest gets by default first. A `host` is named with what it is
 * (`host/9f86d081884c7d65`), so that two of the same name are the same. Throws, naming the option and what is offered, where what
 * is wished is not offered.
 */
export function chooseCpuModels(facts: CpuFacts, wish: string = BASELINE): string[] {
  const { accelerator, definitions, version } = facts;
  const named = offeredModels(definitions);
  const host = identifyHostCpu(facts);
  const whole = accelerator === 'kvm' ? `${HOST}/${host.id}` : `${MAX}/${version}`;
  const offered = [...named, whole];
  const first = wished();
  return [first, ...offered.filter((model) => model !== first)];

  function wished(): string {
    if (wish === BASELINE) {
      const wanted = accelerator === 'kvm' ? (KVM_BASELINES[host.vendor] ?? ANY_BASELINES) : ANY_BASELINES;
      return wanted.find((model) => named.includes(model)) ?? whole;
    }
    if (wish === MAX) return whole;
    if (wish === HOST) {
      if (accelerator === 'kvm') return whole;
      throw new Error(`--cpu-model: "${HOST}" needs KVM, and TCG runs the guests here; ${whatThereIs()}`);
    }
    const definition = definitions.find(({ name }) => name === wish);
    const model = definition?.['alias-of'] ?? wish;
    if (named.includes(model)) return model;
    const lacking = definitions.find(({ name }) => name === model)?.['unavailable-features'] ?? [];
    const why =
      definition === undefined
        ? 'QEMU here does not know it'
        : lacking.length > 0
          ? `this machine lacks ${lacking.join(', ')}`
          : 'it is not the same on every machine';
    throw new Error(`--cpu-model: "${wish}" is not offered here: ${why}; ${whatThereIs()}`);
  }

  function whatThereIs(): string {
    return `"${BASELINE}", ${accelerator === 'kvm' ? `"${HOST}"` : `"${MAX}"`}, or one of ${named.join(', ')}`;
  }
}

/** How long QEMU may take to say which models it has, in milliseconds. */
const ASK_MS = 20_000;

/** Asks QEMU which models it has, and what this machine lacks for each. Throws when it doesn't say. */
export async function readCpuDefinitions(program: QemuProgram, accelerator: Accelerator): Promise<CpuDefinition[]> {
  const output = await converse(
    program.path,
    [
      ...['-machine', program.machine, '-accel', accelerator, '-nodefaults', '-no-user-config'],
      ...['-display', 'none', '-S', '-qmp', 'stdio'],
    ],
    [{ execute: 'qmp_capabilities' }, { execute: 'query-cpu-definitions', id: 'models' }, { execute: 'quit' }],
  );
  for (const line of output.split('\n')) {
    const answer = z.object({ id: z.literal('models'), return: z.array(cpuDefinition) }).safeParse(parseJson(line));
    if (answer.success) return answer.data.return;
  }
  throw new Error(`${program.path} does not say which CPU models it has with ${accelerator}: ${output.slice(-500)}`);
}

/** The models that guests of this machine can be given, as {@link chooseCpuModels}. */
export async function findCpuModels(program: QemuProgram, accelerator: Accelerator, wish?: string): Promise<string[]> {
  const definitions = await readCpuDefinitions(program, accelerator);
  const cpuinfo = await readFile('/proc/cpuinfo', 'utf8');
  const kvm = accelerator === 'kvm' ? await readKvmParameters() : [];
  return chooseCpuModels({ accelerator, definitions, cpuinfo, version: program.version, kvm }, wish);
}

const MODULES = '/sys/module';
/** What of a module's parameters decides which CPU its guests see: whether they may have guests of their own. */
const SEEN_PARAMETERS = ['nested'];

/**
 * How the modules of KVM for a maker's CPUs were loaded, one entry a parameter that a guest sees; the same whether the kernel
 * writes `Y` or `1`. A module without such a parameter has no entry, and neither has one that is a part of the kernel and shows none.
 */
export async function readKvmParameters(modules = MODULES): Promise<string[]> {
  const names = await readdir(modules).catch(() => []);
  const found: string[] = [];
  for (const name of names.filter((each) => each.startsWith('kvm_')).sort())
    for (const parameter of SEEN_PARAMETERS) {
      const value = await readFile(join(modules, name, 'parameters', parameter), 'utf8').catch(() => null);
      if (value === null) continue;
      const text = value.trim();
      found.push(`${name}.${parameter}=${({ Y: '1', N: '0' } as Record<string, string>)[text] ?? text}`);
    }
  return found;
}

/** Runs QEMU, tells it all of this, and returns all that it said. Throws when it can't be run, or does not end. */
function converse(path: string, args: readonly string[], commands: readonly object[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(path, args, { stdio: ['pipe', 'pipe', 'pipe'], timeout: ASK_MS, killSignal: 'SIGKILL' });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8');
      stream.on('data', (text: string) => {
        output += text;
      });
    }
    child.once('error', reject);
    child.once('close', () => resolve(output));
    // One that has ended before reads no more: what it said tells why.
    child.stdin.on('error', () => {});
    child.stdin.end(commands.map((command) => `${JSON.stringify(command)}\n`).join(''));
  });
}

function parseJson(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return null;
  }
}
