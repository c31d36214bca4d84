/**
 * The sled agent's side of the protocol (section 7 of docs/design.md), clause by clause, for whatever runs the VMs. Each suite
 * brings up two agents and a control plane that only listens.
 */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { waitUntil } from '../../platform/host/child-process.ts';
import type { PlantedFaults } from '../../sled-agent/faults.ts';
import type { WitnessedHypervisor } from '../../sled-agent/hypervisor.ts';
import { type SledAgentHandle, type SledAgentOptions, startSledAgent } from '../../sled-agent/server.ts';
import { temporaryFolder } from '../support/qemu.ts';
import { executing, INSTANCE, ListeningControlPlane, loopbackAddress, SledCaller } from '../support/sled.ts';

export interface HypervisorUnderTest {
  readonly name: string;
  readonly memoryBytes: number;
  /** VMs live on when their agent ends without ending them. */
  readonly outlivesAgent: boolean;
  readonly hasConsole: boolean;
  make(dataDir: string): (faults: PlantedFaults, agentAddress: () => string) => WitnessedHypervisor;
}

const THREADS = 4;

/** Declares the suite. */
export function conformance(tested: HypervisorUnderTest): void {
  describe(`a sled agent with ${tested.name} VMs`, () => {
    const plane = new ListeningControlPlane();
    const folders: Awaited<ReturnType<typeof temporaryFolder>>[] = [];
    let agent: SledAgentHandle;
    let other: SledAgentHandle;
    let sled: SledCaller;
    let there: SledCaller;

    async function start(dataDir: string, changes: Partial<SledAgentOptions> = {}): Promise<SledAgentHandle> {
      return startSledAgent({
        name: 's',
        listen: `${loopbackAddress()}:0`,
        controlPlaneUrl: plane.url,
        threads: THREADS,
        memoryBytes: 2 ** 33,
        dataDir,
        makeHypervisor: tested.make(dataDir),
        ...changes,
      });
    }
    async function newFolder(): Promise<string> {
      const folder = await temporaryFolder();
      folders.push(folder);
      return folder.path;
    }

    beforeAll(async () => {
      await plane.listen();
      agent = await start(await newFolder());
      other = await start(await newFolder());
      sled = new SledCaller(agent, tested.memoryBytes);
      there = new SledCaller(other, tested.memoryBytes);
    });
    // Nothing that a test left behind may take the next one's room.
    beforeEach(async () => {
      for (const caller of [sled, there])
        for (const { vmm_id } of (await caller.call('GET', '/vmms')).body.vmms ?? []) await caller.unregister(vmm_id);
    });
    afterAll(async () => {
      await Promise.all([agent?.stop(), other?.stop()]);
      await plane.close();
      for (const folder of folders) await folder.close();
    });

    test('register starts at the generation it is given, and the same once more gives the state as it is', async () => {
      const id = randomUUID();
      const first = await sled.register(id);
      expect(first).toMatchObject({ status: 200, body: { vmm_state: { state: 'starting', gen: 2 } } });
      expect((await sled.register(id)).body.vmm_state).toEqual(first.body.vmm_state);
      expect((await sled.register(id, { instance_id: randomUUID() })).status).toBe(409);
      expect((await sled.call('GET', '/vmms')).body.vmms).toContainEqual(
        expect.objectContaining({ vmm_id: id, instance_id: INSTANCE, vmm_state: first.body.vmm_state }),
      );
      expect((await sled.unregister(id)).body.updated_runtime?.vmm_state).toMatchObject({ state: 'failed', gen: 3 });
    });

    test('two registers at once are one VMM', async () => {
      const id = randomUUID();
      const both = await Promise.all([sled.register(id), sled.register(id)]);
      expect(both.map(({ status }) => status)).toEqual([200, 200]);
      expect(both[0].body).toEqual(both[1].body);
    });

    test('a guest runs, stops, is reported in order although the control plane was away, and is then unknown', async () => {
      const id = randomUUID();
      plane.failing = 3;
      await sled.register(id);
      expect((await sled.command(id, 'running')).status).toBe(200);
      expect((await sled.command(id, 'running')).status).toBe(200);
      await plane.untilReported(id, 'running');
      expect((await sled.command(id, 'stopped')).status).toBe(200);
      expect((await sled.command(id, 'stopped')).status).toBe(200);
      await plane.untilReported(id, 'destroyed');
      expect(plane.states(id)).toEqual(['starting', 'running', 'stopping', 'stopped', 'destroyed']);
      await waitUntil(async () => (await sled.read(id)).status === 404, 'it was never forgotten');
      expect((await sled.read(id)).body.error_code).toBe('NO_SUCH_INSTANCE');
    });

    test('generations only grow, one for each state', async () => {
      for (const { vmmId } of plane.reports) {
        const gens = plane.reports.filter((one) => one.vmmId === vmmId).map(({ report }) => report.vmm_state.gen);
        expect(gens).toEqual([...gens].sort((one, another) => one - another));
      }
      expect(plane.reports.length).toBeGreaterThan(0);
    });

    test('a VMM that never ran is stopped at once, and then takes no more commands', async () => {
      const id = randomUUID();
      plane.failing = 1_000_000;
      await sled.register(id);
      await sled.command(id, 'stopped');
      expect((await sled.command(id, 'running')).status).toBe(410);
      expect((await sled.command(id, 'reboot')).status).toBe(410);
      plane.failing = 0;
      await plane.untilReported(id, 'destroyed');
    });

    test('an unregistered id stays dead, known before or not', async () => {
      const id = randomUUID();
      expect((await sled.unregister(id)).body).toEqual({ updated_runtime: null });
      expect(await sled.register(id)).toMatchObject({ status: 409, body: { error_code: 'VMM_UNREGISTERED' } });
      const known = randomUUID();
      await sled.register(known);
      await sled.unregister(known);
      expect(await sled.register(known)).toMatchObject({ status: 409, body: { error_code: 'VMM_UNREGISTERED' } });
    });

    test('an unknown VMM is 404 with the code that says so, to commands as to questions', async () => {
      for (const answer of [await sled.read(randomUUID()), await sled.command(randomUUID(), 'running')])
        expect(answer).toMatchObject({ status: 404, body: { error_code: 'NO_SUCH_INSTANCE' } });
    });

    test('what does not fit is refused, and so is a bad body, by the name of its field', async () => {
      expect((await sled.register(randomUUID(), { ncpus: THREADS + 1 })).status).toBe(409);
      expect((await sled.register(randomUUID(), { memory_bytes: 2 ** 34 })).status).toBe(409);
      const full = randomUUID();
      await sled.register(full, { ncpus: THREADS });
      expect((await sled.register(randomUUID())).body.error_code).toBe('NO_ROOM');
      await sled.unregister(full);
      const bad = await sled.call('PUT', `/vmms/${randomUUID()}/state`, { state: { type: 'dance' } });
      expect(bad.status).toBe(400);
      expect(String(bad.body.message)).toContain('state');
    });

    test('a reboot is reported, and the guest runs again', async () => {
      const { vmmId } = await sled.running();
      await waitUntil(() => (agent.hypervisor.count(vmmId) ?? 0) > 1, 'it never counted', 60_000);
      expect((await sled.command(vmmId, 'reboot')).status).toBe(200);
      await plane.untilReported(vmmId, 'rebooting');
      await waitUntil(() => plane.states(vmmId).at(-1) === 'running', 'it never ran again', 60_000);
      // A guest counts anew, and what comes of the reboot has come by then.
      const before = agent.hypervisor.count(vmmId) ?? 0;
      await waitUntil(() => (agent.hypervisor.count(vmmId) ?? before) !== before, 'it never counted again', 60_000);
      expect(plane.states(vmmId)).toEqual(['starting', 'running', 'rebooting', 'running']);
    });

    test('a guest that powers itself off is reported as such', async () => {
      const { vmmId } = await sled.running();
      agent.faults.halt(vmmId);
      await plane.untilReported(vmmId, 'destroyed');
      expect(plane.states(vmmId)).toEqual(['starting', 'running', 'stopping', 'stopped', 'destroyed']);
    });

    test('a VM whose process dies is failed, without a report on a migration', async () => {
      const { vmmId } = await sled.running();
      agent.faults.crash(vmmId);
      await plane.untilReported(vmmId, 'failed');
      expect(plane.last(vmmId)).toEqual({ vmm_state: expect.objectContaining({ state: 'failed' }) });
      await waitUntil(async () => (await sled.read(vmmId)).status === 404, 'it was never forgotten');
    });

    test('a migration moves the guest with its count, both sides report, and it never executes twice', async () => {
      const source = await sled.running();
      await waitUntil(() => (agent.hypervisor.count(source.vmmId) ?? 0) > 1, 'it never counted', 60_000);
      const [target, migration_id] = [randomUUID(), randomUUID()];
      await there.register(target, { migration_id });
      expect((await there.command(target, 'running')).status).toBe(409);
      const before = agent.hypervisor.count(source.vmmId) ?? 0;
      expect((await there.migrateIn(target, source.address)).status).toBe(200);
      expect((await there.migrateIn(target, source.address)).status).toBe(200);
      await plane.untilSideReported(source.vmmId, 'migration_out', 'completed');
      await plane.untilSideReported(target, 'migration_in', 'completed');
      // The same once more, also when it is over.
      expect((await there.migrateIn(target, source.address)).status).toBe(200);
      expect((await there.read(target)).body.vmm_state?.state).toBe('running');
      await waitUntil(() => (other.hypervisor.count(target) ?? 0) > before, 'it never counted on');
      await plane.untilReported(source.vmmId, 'destroyed');
      expect(plane.last(source.vmmId)?.migration_out).toMatchObject({ migration_id, state: 'completed', gen: 3 });
      expect(plane.last(target)?.migration_in).toMatchObject({ migration_id, state: 'completed', gen: 3 });
      expect(plane.states(source.vmmId)).toEqual(['starting', 'running', 'migrating', 'destroyed']);
      expect(plane.states(target)).toEqual(['migrating', 'running']);
      expect(executing([agent, other], [source.vmmId, target])).toBe(1);
    });

    test('a VMM that was not made for a migration takes none, now and later', async () => {
      const [id, migration_id] = [randomUUID(), randomUUID()];
      const source = await sled.running();
      await there.register(id);
      expect((await there.migrateIn(id, source.address)).status).toBe(409);
      expect((await there.migrateIn(id, source.address)).status).toBe(409);

      const refused = randomUUID();
      await there.register(refused, { migration_id });
      other.faults.plant({ call: 'state:migration_target', act: { type: 'refuse', status: 409 }, times: 1 });
      expect((await there.migrateIn(refused, source.address)).status).toBe(409);
      expect((await there.migrateIn(refused, source.address)).status).toBe(409);
      expect((await sled.read(source.vmmId)).body.migration_out ?? null).toBe(null);
    });

    test('a destination that finds no source fails with its side of the migration', async () => {
      const [target, migration_id] = [randomUUID(), randomUUID()];
      await there.register(target, { migration_id });
      await there.migrateIn(target, `${loopbackAddress()}:9`);
      await plane.untilReported(target, 'failed');
      expect(plane.last(target)?.migration_in).toMatchObject({ migration_id, state: 'failed' });
    });

    test('a destination that comes to another instance’s VMM, since addresses are used again, gets nothing', async () => {
      const source = await sled.running();
      const [target, migration_id] = [randomUUID(), randomUUID()];
      await there.register(target, { migration_id, instance_id: randomUUID() });
      await there.migrateIn(target, source.address);
      await plane.untilReported(target, 'failed');
      expect((await sled.read(source.vmmId)).body).toEqual({
        vmm_state: expect.objectContaining({ state: 'running' }),
      });
      expect(executing([agent, other], [source.vmmId, target])).toBe(1);
    });

    test('a serial console is read in pieces, or answered not to be there', async () => {
      const { vmmId } = await sled.running();
      const answer = await sled.call('GET', `/vmms/${vmmId}/serial-console?from_start=0&max_bytes=10`);
      if (tested.hasConsole) {
        expect(answer).toMatchObject({ status: 200, body: { data: expect.any(Array) } });
        expect((await sled.call('GET', `/vmms/${vmmId}/serial-console?max_bytes=0`)).status).toBe(400);
      } else expect(answer).toMatchObject({ status: 409, body: { error_code: 'NO_SERIAL_CONSOLE' } });
      expect((await sled.call('GET', `/vmms/${randomUUID()}/serial-console`)).body.error_code).toBe('NO_SUCH_INSTANCE');
    });

    test.each(['source', 'target'] as const)(
      'a migration that breaks at the %s leaves the guest where it was, running; the next one succeeds',
      async (side) => {
        const source = await sled.running();
        const [target, migration_id] = [randomUUID(), randomUUID()];
        (side === 'source' ? agent : other).faults.plant({ migration: { side, point: 'middle' } });
        await there.register(target, { migration_id });
        await there.migrateIn(target, source.address);
        await plane.untilSideReported(target, 'migration_in', 'failed');
        await plane.untilSideReported(source.vmmId, 'migration_out', 'failed');
        await waitUntil(() => plane.states(source.vmmId).at(-1) === 'running', 'it never went on');

        const [again, migration] = [randomUUID(), randomUUID()];
        await there.register(again, { migration_id: migration });
        await there.migrateIn(again, source.address);
        await plane.untilSideReported(again, 'migration_in', 'completed');
        expect(executing([agent, other], [source.vmmId, target, again])).toBe(1);
      },
    );

    test('a stop that meets a migration in is carried out when the guest has come', async () => {
      const source = await sled.running();
      const [target, migration_id] = [randomUUID(), randomUUID()];
      await there.register(target, { migration_id });
      await there.migrateIn(target, source.address);
      expect((await there.command(target, 'stopped')).status).toBe(200);
      await plane.untilReported(target, 'destroyed');
      expect(plane.states(target).slice(-3)).toEqual(['stopping', 'stopped', 'destroyed']);
      expect(plane.last(target)?.migration_in?.state).toBe('completed');
      expect(executing([agent, other], [source.vmmId, target])).toBe(0);
    });

    test('a stop that meets a migration out cancels it and stops the guest, or says that it has left', async () => {
      const source = await sled.running();
      const [target, migration_id] = [randomUUID(), randomUUID()];
      await there.register(target, { migration_id });
      await there.migrateIn(target, source.address);
      await plane.untilReported(source.vmmId, 'migrating');
      const answer = await sled.command(source.vmmId, 'stopped');
      if (answer.status === 200) {
        await plane.untilReported(source.vmmId, 'stopped');
        await plane.untilReported(target, 'failed');
        expect(executing([agent, other], [source.vmmId, target])).toBe(0);
      } else {
        // It was forgotten, where the control plane was quicker.
        expect([404, 409]).toContain(answer.status);
        await plane.untilSideReported(target, 'migration_in', 'completed');
        expect(executing([agent, other], [source.vmmId, target])).toBe(1);
      }
    });

    test('unregister in the middle of a migration: the destination fails and the guest stays', async () => {
      const source = await sled.running();
      const [target, migration_id] = [randomUUID(), randomUUID()];
      await there.register(target, { migration_id });
      await there.migrateIn(target, source.address);
      const { body } = await there.unregister(target);
      const arrived = body.updated_runtime?.migration_in?.state === 'completed';
      if (!arrived) {
        expect(body.updated_runtime).toMatchObject({
          vmm_state: { state: 'failed' },
          migration_in: { migration_id, state: 'failed' },
        });
        await waitUntil(
          async () => (await sled.read(source.vmmId)).body.vmm_state?.state === 'running',
          'the source never went on',
        );
      }
      expect(executing([agent, other], [source.vmmId, target])).toBe(arrived ? 0 : 1);
    });

    test('an agent that was restarted answers 503 until it knows what runs, then goes on where it ended', async () => {
      const dataDir = await newFolder();
      const first = await start(dataDir);
      const caller = new SledCaller(first, tested.memoryBytes);
      const dead = randomUUID();
      await caller.unregister(dead);
      const { vmmId } = await caller.running();
      const before = (await caller.read(vmmId)).body.vmm_state;
      await plane.untilReported(vmmId, 'running');
      const reportsBefore = plane.reports.length;
      await first.detach();

      let finishRecovery: () => void = () => {};
      const mayRecover = new Promise<void>((resolve) => {
        finishRecovery = resolve;
      });
      const starting = start(dataDir, {
        listen: first.address,
        makeHypervisor: (faults, address) => {
          const made = tested.make(dataDir)(faults, address);
          const recover = made.recover.bind(made);
          made.recover = async (stored) => {
            await mayRecover;
            await recover(stored);
          };
          return made;
        },
      });
      const early = new SledCaller({ url: first.url }, tested.memoryBytes);
      await waitUntil(
        () =>
          early.read(vmmId).then(
            () => true,
            () => false,
          ),
        'it never listened',
      );
      for (const answer of [
        await early.read(vmmId),
        await early.read(randomUUID()),
        await early.call('GET', '/vmms'),
        await early.command(vmmId, 'stopped'),
        await early.unregister(vmmId),
        await early.register(randomUUID()),
      ])
        expect(answer.status).toBe(503);
      finishRecovery();
      const second = await starting;
      try {
        expect((await early.register(dead)).status).toBe(409);
        if (tested.outlivesAgent) {
          expect((await early.read(vmmId)).body.vmm_state).toEqual(before);
          await early.command(vmmId, 'stopped');
          await plane.untilReported(vmmId, 'destroyed');
        } else {
          await plane.untilReported(vmmId, 'failed');
          expect(plane.last(vmmId)?.vmm_state.gen).toBe((before?.gen ?? 0) + 1);
          expect(plane.last(vmmId)?.migration_out ?? null).toBe(null);
        }
        const newReports = plane.reports.slice(reportsBefore).filter((one) => one.vmmId === vmmId);
        expect(Math.min(...newReports.map(({ report }) => report.vmm_state.gen))).toBe(before?.gen);
        await waitUntil(async () => (await early.read(vmmId)).status === 404, 'it was never forgotten');
      } finally {
        await second.stop();
      }
    });

    test('two agents never work with the same data', async () => {
      const dataDir = await newFolder();
      const first = await start(dataDir);
      await expect(start(dataDir)).rejects.toThrow('another sled agent works with');
      await first.stop();
      await (await start(dataDir)).stop();
    });

    test('a terminal state whose report was not delivered is reported again after a restart', async () => {
      const dataDir = await newFolder();
      const first = await start(dataDir);
      const caller = new SledCaller(first, tested.memoryBytes);
      const id = randomUUID();
      await caller.register(id);
      await plane.untilReported(id, 'starting');
      first.faults.holdReports(true);
      await caller.unregister(id);
      await first.stop();
      expect(plane.states(id)).toEqual(['starting']);
      const second = await start(dataDir);
      await plane.untilReported(id, 'failed');
      await second.stop();
    });
  });
}
