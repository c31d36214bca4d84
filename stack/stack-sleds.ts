/** The sleds of a stack: where they listen, how the control plane comes to know them, and their agents. */
import { randomInt } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { availableParallelism, platform, totalmem } from 'node:os';
import { join } from 'node:path';
import { z } from 'zod';
import type { RunningApi } from '../api/server.ts';
import type { MooringClient } from '../client/mooring-client.ts';
import { freePort } from '../platform/host/child-process.ts';
import { loadIdentity, type StoredIdentity } from '../sled-agent/identity-file.ts';
import { joinSled } from '../sled-agent/join.ts';
import { prepareQemu } from '../sled-agent/qemu/prepare-qemu.ts';
import { QemuHypervisor } from '../sled-agent/qemu-hypervisor.ts';
import { type SledAgentHandle, type SledAgentOptions, startSledAgent } from '../sled-agent/server.ts';
import { SledIdentity } from '../sled-agent/sled-identity.ts';
import { pick, SLED_AGENT_OPTIONS, type StackSetup } from './stack-options.ts';
import { cacheDirectory } from './temporal-binary.ts';

/** A sled of a running stack. */
export interface StackSled {
  readonly id: string;
  readonly name: string;
  readonly agent: SledAgentHandle;
}

interface SledSize {
  readonly threads: number;
  readonly memoryBytes: number;
}

/** The size that a simulated sled reports. */
const SIMULATED_SLED: SledSize = { threads: 64, memoryBytes: 256 * 1024 ** 3 };
const MIB = 1024 ** 2;

/**
 * Starts a stack's sled agents, each known to the control plane. With `joins`, a sled has an identity of its own; without, it
 * is added by an operator's call. Throws when the API refuses a sled, an agent can't listen, or QEMU is asked for and missing.
 */
export async function startSleds(
  setup: StackSetup,
  api: RunningApi,
  client: MooringClient,
  joins: boolean,
): Promise<StackSled[]> {
  const { options, dataDir, stops, report } = setup;
  const qemu =
    options.hypervisor === 'qemu' && options.sleds > 0
      ? await prepareQemu({ cacheDir: cacheDirectory(setup.env) })
      : null;
  if (qemu !== null)
    report(`QEMU ${qemu.program.version} with ${qemu.accelerator.toUpperCase()} (${qemu.reason}) runs the VMs`);
  const size = qemu === null ? SIMULATED_SLED : shareOfMachine(options.sleds);
  const sleds: StackSled[] = [];
  for (const [index, listen] of (await sledAddresses(dataDir, options.sleds)).entries()) {
    const name = `sled-${index + 1}`;
    const folder = join(dataDir, name);
    const joined = joins ? await joinedSled(client, folder, name, listen, size) : null;
    const makeHypervisor: SledAgentOptions['makeHypervisor'] = (faults, agentAddress, transport, disk) =>
      new QemuHypervisor({
        ...(qemu as NonNullable<typeof qemu>),
        dataDir: folder,
        faults,
        agentAddress,
        transport,
        disk,
        endWithAgent: true,
        migrationBandwidth: options.migrationBandwidth,
      });
    const agent = await startSledAgent({
      ...pick(options, SLED_AGENT_OPTIONS),
      ...size,
      name,
      listen,
      controlPlaneUrl: api.sledUrl ?? api.url,
      identity: joined === null ? undefined : new SledIdentity(joined, folder, report),
      dataDir: qemu === null && options.dataDir === undefined ? undefined : folder,
      onTrouble: (message) => report(`${name}: ${message}`),
      ...(qemu === null ? {} : { makeHypervisor }),
    });
    stops.push(agent.stop);
    sleds.push({ id: joined?.sledId ?? (await addedSled(client, name, agent.address, size)), name, agent });
    report(`${name} (${qemu === null ? 'simulated' : 'QEMU'}) at ${agent.address}`);
  }
  return sleds;
}

/** Real sleds of one machine share what it has. */
function shareOfMachine(sleds: number): SledSize {
  return { threads: availableParallelism(), memoryBytes: Math.floor(totalmem() / 2 / sleds / MIB) * MIB };
}

const addressFile = z.array(z.string());

/**
 * Where the sleds listen: each on a loopback address of its own where the system has them, so that the ports
 * of its VMs are its own; the same ones again on the same data.
 */
async function sledAddresses(dataDir: string, count: number): Promise<string[]> {
  const file = join(dataDir, 'sled-addresses.json');
  const known = addressFile.catch([]).parse(JSON.parse(await readFile(file, 'utf8').catch(() => '[]')));
  const net = platform() === 'linux' ? `127.${randomInt(1, 255)}.${randomInt(0, 255)}` : null;
  while (known.length < count) {
    const ip = net === null ? '127.0.0.1' : `${net}.${known.length + 1}`;
    known.push(`${ip}:${await freePort(ip)}`);
  }
  await writeFile(file, JSON.stringify(known));
  return known.slice(0, count);
}

/** The identity of a sled of this stack: the one that its folder holds, or a new one by an invitation. */
async function joinedSled(
  client: MooringClient,
  folder: string,
  name: string,
  address: string,
  size: SledSize,
): Promise<StoredIdentity> {
  const known = await loadIdentity(folder);
  if (known !== null) return known;
  const { token } = await client.inviteSled({ name }).catch((error: Error) => {
    throw new Error(`${name} could not be invited: ${error.message}`, { cause: error });
  });
  return joinSled({ token, folder, address, ...size });
}

/** The id of a sled without an identity: it is added unless it is there already. */
async function addedSled(
  client: MooringClient,
  name: string,
  address: string,
  { threads, memoryBytes }: SledSize,
): Promise<string> {
  for await (const sled of client.listSleds()) if (sled.name === name && sled.address === address) return sled.id;
  const added = await client.addSled({ name, address, threads, memory: memoryBytes }).catch((error: Error) => {
    throw new Error(`${name} could not be added: ${error.message}`, { cause: error });
  });
  return added.id;
}
