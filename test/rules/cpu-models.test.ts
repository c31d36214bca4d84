/** Which CPU a guest gets, where it may go on with it, and what QEMU is told: the pure part; KVM itself is at no test's hand. */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  BASELINE,
  type CpuDefinition,
  type CpuFacts,
  chooseCpuModels,
  HOST,
  identifyHostCpu,
  offeredModels,
  readKvmParameters,
} from '../../sled-agent/qemu/cpu-models.ts';
import { cpuArguments, type MachineShape } from '../../sled-agent/qemu/qemu-program.ts';
import { describeDifference } from '../../sled-agent/qemu/send-guest.ts';
import { temporaryFolder } from '../support/qemu.ts';

const model = (name: string, more: Partial<CpuDefinition> = {}): CpuDefinition => ({
  name,
  'unavailable-features': [],
  'migration-safe': true,
  ...more,
});
/** As QEMU answers `query-cpu-definitions` on an Intel server that is not the newest. */
const DEFINITIONS: CpuDefinition[] = [
  model('max', { 'migration-safe': false }),
  model('host', { 'migration-safe': false }),
  model('base', { 'migration-safe': false }),
  model('qemu64', { 'alias-of': 'qemu64-v1' }),
  model('qemu64-v1'),
  model('Nehalem', { 'alias-of': 'Nehalem-v1' }),
  model('Nehalem-v1'),
  model('Nehalem-v2'),
  model('Opteron_G3-v1', { 'unavailable-features': ['sse4a'] }),
  model('EPYC-v1', { 'unavailable-features': ['sse4a', 'clzero'] }),
  model('SapphireRapids-v1', { 'unavailable-features': ['amx-tile'] }),
  { name: 'Denverton-v1', 'migration-safe': true },
];
const cpuinfo = (fields: Record<string, string>) =>
  [0, 1]
    .map((processor) =>
      Object.entries({
        processor: String(processor),
        vendor_id: 'GenuineIntel',
        'cpu family': '6',
        model: '85',
        stepping: '7',
        microcode: '0x5003',
        'cpu MHz': String(2_000 + processor),
        flags: 'fpu vme sse2 popcnt',
        ...fields,
      })
        .map(([name, value]) => `${name}\t: ${value}`)
        .join('\n'),
    )
    .join('\n\n');
const intel: CpuFacts = {
  accelerator: 'kvm',
  definitions: DEFINITIONS,
  cpuinfo: cpuinfo({}),
  version: '7.2.22',
  kvm: ['kvm_intel.nested=1'],
};
const without = (...names: string[]) => DEFINITIONS.filter(({ name }) => !names.includes(name));
const amd: CpuFacts = {
  ...intel,
  cpuinfo: cpuinfo({ vendor_id: 'AuthenticAMD' }),
  definitions: [...without('EPYC-v1', 'Opteron_G3-v1', 'Nehalem-v1'), model('EPYC-v1'), model('Opteron_G3-v1')],
};
const hostId = (facts: CpuFacts) => `host/${identifyHostCpu(facts).id}`;

test('offered is what this machine has all for, keeps what it is, and has a name of its own', () => {
  expect(offeredModels(DEFINITIONS)).toEqual(['Nehalem-v1', 'Nehalem-v2', 'qemu64-v1']);
});

describe('what a guest gets by default', () => {
  const tcg: CpuFacts = { ...intel, accelerator: 'tcg' };
  test.each([
    ['KVM on Intel: a named baseline', intel, undefined, 'Nehalem-v1'],
    ['KVM on AMD: one of its own', amd, undefined, 'EPYC-v1'],
    [
      'KVM on an old AMD',
      { ...amd, definitions: amd.definitions.filter(({ name }) => name !== 'EPYC-v1') },
      BASELINE,
      'Opteron_G3-v1',
    ],
    ['KVM on an old Intel', { ...intel, definitions: without('Nehalem-v1') }, BASELINE, 'qemu64-v1'],
    ['KVM on another maker’s', { ...intel, cpuinfo: cpuinfo({ vendor_id: 'Other' }) }, BASELINE, 'qemu64-v1'],
    ['KVM where no baseline is offered', { ...intel, definitions: [] }, BASELINE, hostId(intel)],
    ['KVM, host on request', intel, HOST, hostId(intel)],
    ['KVM, max is the host', intel, 'max', hostId(intel)],
    ['KVM, a model by its alias', intel, 'Nehalem', 'Nehalem-v1'],
    ['KVM, a model by its name', intel, 'Nehalem-v2', 'Nehalem-v2'],
    ['TCG: QEMU’s own default, by its name', tcg, undefined, 'qemu64-v1'],
    ['TCG, all that it can, on request', tcg, 'max', 'max/7.2.22'],
  ] as const)('%s', (_, facts, wish, first) => {
    const models = chooseCpuModels(facts, wish);
    expect(models[0]).toBe(first);
    // Whatever the default is, a guest of any other model that is offered can come; each is named once.
    expect(new Set(models)).toEqual(
      new Set([
        ...offeredModels(facts.definitions),
        facts.accelerator === 'kvm' ? hostId(facts) : `max/${facts.version}`,
      ]),
    );
    expect(new Set(models).size).toBe(models.length);
  });

  test.each([
    ['SapphireRapids-v1', intel, /--cpu-model: "SapphireRapids-v1" is not offered here: this machine lacks amx-tile;/],
    ['Nehalam', intel, /QEMU here does not know it; "baseline", "host", or one of Nehalem-v1, Nehalem-v2, qemu64-v1/],
    ['base', intel, /it is not the same on every machine/],
    ['host', { ...intel, accelerator: 'tcg' }, /"host" needs KVM.*"baseline", "max", or one of/],
  ] as const)('%s is refused, with what there is', (wish, facts, message) => {
    expect(() => chooseCpuModels(facts, wish)).toThrow(message);
  });
});

describe('a host CPU', () => {
  const id = (fields: Record<string, string>) => identifyHostCpu({ ...intel, cpuinfo: cpuinfo(fields) }).id;
  test.each([
    ['another order of its flags', { flags: 'popcnt sse2 fpu vme' }],
    ['another microcode', { microcode: '0x5004' }],
    ['another clock', { 'cpu MHz': '3200' }],
  ])('is the same with %s', (_, fields) => {
    expect(id(fields)).toBe(id({}));
  });
  test.each([
    ['maker', { vendor_id: 'AuthenticAMD' }],
    ['family', { 'cpu family': '25' }],
    ['model', { model: '86' }],
    ['stepping', { stepping: '8' }],
    ['feature', { flags: 'fpu vme sse2 popcnt avx512f' }],
  ])('is another one with another %s', (_, fields) => {
    expect(id(fields)).not.toBe(id({}));
  });

  test('is the same where all that a guest sees of it is, and another one where any of that differs', () => {
    const seen = fc.record({
      cpuinfo: fc.constantFrom(cpuinfo({}), cpuinfo({ stepping: '8' })),
      version: fc.constantFrom('7.2.22', '7.2.23', '8.2.0'),
      kvm: fc.shuffledSubarray(['kvm_intel.nested=1', 'kvm_amd.nested=1', 'kvm_amd.nested=0']),
    });
    const what = ({ kvm, ...others }: { kvm: string[] }) => JSON.stringify([others, [...kvm].sort()]);
    fc.assert(
      fc.property(seen, seen, (here, there) => {
        const models = [here, there].map((each) => chooseCpuModels({ ...intel, ...each }, HOST)[0]);
        expect(models[0] === models[1]).toBe(what(here) === what(there));
      }),
    );
  });

  test('is known by how the modules of KVM were loaded, whichever they are and however the kernel writes it', async () => {
    const { path, close } = await temporaryFolder();
    try {
      const load = async (module: string, parameters: Record<string, string>) => {
        await mkdir(join(path, module, 'parameters'), { recursive: true });
        for (const [name, value] of Object.entries(parameters))
          await writeFile(join(path, module, 'parameters', name), `${value}\n`);
      };
      expect(await readKvmParameters(join(path, 'nowhere'))).toEqual([]);
      await load('kvm', { nested: 'Y', halt_poll_ns: '200000' });
      await load('virtio', { nested: '1' });
      await load('kvm_pvm', { force: 'N' });
      expect(await readKvmParameters(path)).toEqual([]);
      for (const [written, read] of [
        ['Y', '1'],
        ['N', '0'],
        ['1', '1'],
        ['0', '0'],
      ] as const) {
        await load('kvm_intel', { nested: written, ept: 'Y' });
        await load('kvm_amd', { nested: written });
        expect(await readKvmParameters(path)).toEqual([`kvm_amd.nested=${read}`, `kvm_intel.nested=${read}`]);
      }
    } finally {
      await close();
    }
  });
});

test.each([
  ['kvm', 'Nehalem-v1', ['-cpu', 'Nehalem-v1,enforce']],
  ['kvm', 'host/0123456789abcdef', ['-cpu', 'host']],
  ['tcg', 'qemu64-v1', ['-cpu', 'qemu64-v1,enforce']],
  ['tcg', 'max/7.2.22', ['-cpu', 'max']],
  ['kvm', null, ['-cpu', 'host']],
  ['tcg', null, []],
] as const)('%s with %s: what QEMU is told', (accelerator, cpuModel, args) => {
  expect(cpuArguments({ accelerator, cpuModel })).toEqual(args);
});

test('two machines are alike when all of their shape is, the CPU too; else the first field that differs is named', () => {
  const shape: fc.Arbitrary<MachineShape> = fc.record({
    machine: fc.constantFrom('pc-q35-7.2', 'pc-q35-8.0'),
    accelerator: fc.constantFrom('kvm', 'tcg'),
    memoryMib: fc.constantFrom(96, 128),
    ncpus: fc.constantFrom(1, 2),
    cpuModel: fc.constantFrom('Nehalem-v1', 'EPYC-v1', 'host/1', 'host/2', null),
  });
  fc.assert(
    fc.property(shape, shape, (here, there) => {
      const differs = (Object.keys(here) as (keyof MachineShape)[]).filter((field) => here[field] !== there[field]);
      const found = describeDifference(here, there);
      if (differs.length === 0) expect(found).toBeNull();
      else expect(differs.some((field) => found?.includes(`${field} is`))).toBe(true);
    }),
  );
});
