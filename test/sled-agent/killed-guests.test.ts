/** A guest that was killed never executes again, at whatever moment of its life, or of its migration, that was. */
import { randomUUID } from 'node:crypto';
import type { Socket } from 'node:net';
import { afterAll, describe, expect, test } from 'vitest';
import { freePort } from '../../platform/host/child-process.ts';
import { PlantedFaults } from '../../sled-agent/faults.ts';
import type { VmSpec } from '../../sled-agent/hypervisor.ts';
import { type PeerTransport, PLAIN_TRANSPORT } from '../../sled-agent/peer-transport.ts';
import { SimulatedHypervisor } from '../../sled-agent/simulated-hypervisor.ts';
import { loopbackAddress } from '../support/sled.ts';
import { eventually } from '../support/wait.ts';

const TRANSITION_MS = 5;
const hypervisors: SimulatedHypervisor[] = [];
afterAll(async () => {
  for (const one of hypervisors) await one.close();
});

/** A transport that calls whenever a piece has been written to the other side, in either direction. */
function counting(onPiece: () => void): PeerTransport {
  const counted = (socket: Socket): Socket => {
    const write = socket.write.bind(socket) as (text: string) => boolean;
    socket.write = ((text: string) => {
      const written = write(text);
      onPiece();
      return written;
    }) as typeof socket.write;
    return socket;
  };
  return {
    ...PLAIN_TRANSPORT,
    serve: (onConnection) => PLAIN_TRANSPORT.serve((socket) => onConnection(counted(socket))),
    dial: (address, onOpen) => counted(PLAIN_TRANSPORT.dial(address, onOpen)),
  };
}

interface Side {
  readonly hypervisor: SimulatedHypervisor;
  readonly spec: VmSpec;
  readonly said: string[];
}

/** Something that happens in a migration: a side says something, or a piece of it is on its way. */
type OnMoment = () => void;

async function makeSide(instanceId: string, incoming: boolean, onMoment: OnMoment): Promise<Side> {
  const hypervisor = new SimulatedHypervisor(TRANSITION_MS, new PlantedFaults(), undefined, counting(onMoment));
  hypervisors.push(hypervisor);
  const ip = loopbackAddress();
  const spec: VmSpec = {
    ...{ vmmId: randomUUID(), instanceId, name: 'web', ncpus: 1, memoryBytes: 2 ** 30 },
    ...{ address: `${ip}:${await freePort(ip)}`, incoming },
  };
  const said: string[] = [];
  await hypervisor.create(spec, (event) => {
    said.push(`${event.kind} ${event.state}`);
    onMoment();
    return null;
  });
  return { hypervisor, spec, said };
}

/** Migrates a guest, and kills a side when so many moments have passed. Returns whether so many came. */
async function migrate(victim: 'source' | 'destination', killAfter: number): Promise<boolean> {
  const instanceId = randomUUID();
  let moments = 0;
  let begun = false;
  let killed: Promise<void> | null = null;
  let atDeath = 0;
  const onMoment = () => {
    if (!begun || killed !== null) return;
    moments += 1;
    if (moments < killAfter) return;
    const { hypervisor, spec } = victim === 'source' ? source : destination;
    killed = hypervisor.kill(spec.vmmId);
    atDeath = hypervisor.guestLog.length;
  };
  const source = await makeSide(instanceId, false, onMoment);
  const destination = await makeSide(instanceId, true, onMoment);
  source.hypervisor.run(source.spec.vmmId);
  await eventually(() => source.said.includes('state running'), 'the guest never ran');
  begun = true;
  destination.hypervisor.migrateIn(destination.spec.vmmId, randomUUID(), source.spec.address);
  const settled = () =>
    destination.said.some((what) => /^migration-in (completed|failed)$/.test(what)) ||
    (victim === 'destination' && killed !== null);
  await eventually(settled, `the migration never ended: ${source.said}; ${destination.said}`);
  await killed;
  const { hypervisor, spec } = victim === 'source' ? source : destination;
  // Whatever was on its way when it died arrives: the survivor's own word ends with it.
  const other = victim === 'source' ? destination : source;
  await eventually(
    () => other.hypervisor.count(other.spec.vmmId) !== null || /failed|destroyed|completed/.test(other.said.join()),
    'the other side never settled',
  );
  await new Promise((resolve) => setTimeout(resolve, 20 * TRANSITION_MS));
  const after = hypervisor.guestLog.slice(atDeath).filter(({ vmm_id }) => vmm_id === spec.vmmId);
  if (killed !== null) {
    expect({ victim, killAfter, after }).toEqual({ victim, killAfter, after: [] });
    expect(hypervisor.count(spec.vmmId)).toBeNull();
  }
  return killed !== null;
}

describe.each(['source', 'destination'] as const)('killed in a migration, the %s', (victim) => {
  test('never executes again, whichever moment it was', async () => {
    let tried = 0;
    for (let killAfter = 1; await migrate(victim, killAfter); killAfter++) tried += 1;
    // Of fewer moments the migration would not have been all tried: fetch, begin, memory, complete, yours, and what is said.
    expect(tried).toBeGreaterThan(6);
  });
});

test.each(['run', 'reboot', 'stop'] as const)('killed in the middle of a %s, it never executes again', async (what) => {
  const { hypervisor, spec, said } = await makeSide(randomUUID(), false, () => {});
  hypervisor.run(spec.vmmId);
  if (what !== 'run') {
    await eventually(() => said.includes('state running'), 'the guest never ran');
    hypervisor[what](spec.vmmId);
  }
  await hypervisor.kill(spec.vmmId);
  const atDeath = hypervisor.guestLog.length;
  await new Promise((resolve) => setTimeout(resolve, 20 * TRANSITION_MS));
  expect(hypervisor.guestLog.slice(atDeath)).toEqual([]);
});
