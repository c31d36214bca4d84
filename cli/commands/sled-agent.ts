import { availableParallelism, totalmem } from 'node:os';
import { type Command, Option } from 'commander';
import { listensEverywhere, readHostAddress, refuseToListen } from '../../model/host-address.ts';
import { DEFAULT_LEASE_MS } from '../../model/lease.ts';
import type { StoredIdentity } from '../../sled-agent/identity-file.ts';
import { splitAddress } from '../../wire/sled-protocol.ts';
import { DEFAULT_API_PORT } from '../context.ts';
import { parseSize } from '../format.ts';
import { printJson } from '../output.ts';
import { type HypervisorChoice, hypervisorOption, requireFree, untilShutdownSignal } from '../processes.ts';
import { SUMMARIES } from '../summaries.ts';

interface AgentOptions {
  readonly hypervisor: HypervisorChoice;
  readonly data?: string;
  readonly threads?: number;
  readonly memory?: number;
  readonly transitionMs: number;
  readonly networkPollMs: number;
  readonly guestLog?: string;
  readonly stopTimeout: number;
  readonly migrationBandwidth?: number;
  readonly accelerator: 'auto' | 'kvm' | 'tcg';
  readonly cpuModel?: string;
  readonly kernel?: string;
  readonly initramfs?: string;
  readonly fencing?: boolean;
  readonly lease: number;
  readonly sledId?: string;
  readonly releaseInstallation?: boolean;
  readonly movedData?: boolean;
  readonly testEndpoints?: boolean;
}

/** Adds the options of an agent with or without an identity. */
function withAgentOptions(command: Command): Command {
  return command
    .addOption(hypervisorOption())
    .option('--threads <n>', 'hardware threads for VMs; 16 for simulated ones, else what this machine has', Number)
    .option(
      '--memory <size>',
      'memory for VMs; 64GiB for simulated ones, else half of what this machine has',
      parseSize,
    )
    .option('--transition-ms <ms>', 'how long a transition of a simulated VM takes', Number, 50)
    .option('--stop-timeout <seconds>', 'how long a real guest may take to power off', Number, 30)
    .option(
      '--migration-bandwidth <size>',
      'how much of a real VM may be sent in a second, for example 100MiB',
      parseSize,
    )
    .addOption(
      new Option(
        '--accelerator <which>',
        'what speeds real VMs up; "auto" is KVM where a guest boots with it, else TCG',
      )
        .choices(['auto', 'kvm', 'tcg'])
        .default('auto'),
    )
    .option(
      '--cpu-model <name>',
      'the CPU that real VMs see: "baseline", a named model that is old enough for most servers, so that guests can migrate; "host", this one with all that it can (KVM), for guests that stay among servers with the very same; or a name of "qemu-system-x86_64 -cpu help"',
      'baseline',
    )
    .option('--kernel <file>', 'the kernel that real VMs boot; by default one is made from Debian’s packages')
    .option('--initramfs <file>', 'the initramfs to go with it')
    .option('--network-poll-ms <ms>', 'how often to ask where instances live; 0 never', Number, 1000)
    .option('--guest-log <file>', 'append when a guest begins or ceases to execute to this file, as lines of JSON')
    .option(
      '--fencing',
      'power every guest off when the lease could not be renewed, so that they may come up elsewhere',
    )
    .option(
      '--lease <seconds>',
      'how long a lease lasts; it is renewed every third of that',
      Number,
      DEFAULT_LEASE_MS / 1000,
    )
    .option(
      '--sled-id <id>',
      'which sled this is; by default its certificate says so, or the control plane, by its name',
    )
    .option(
      '--release-installation',
      'once, when another installation is to have this sled: forget the one whose orders its agent took; the next one that commands it is kept',
    )
    .option(
      '--moved-data',
      'the folder of --data was moved here, and the agent that had it is off for good: take it up here; to be given once',
    )
    .option('--test-endpoints', 'take planted faults over HTTP');
}

/** Adds `mooring sled-agent` and `mooring sled-agent join`. */
export function addSledAgentCommand(program: Command): void {
  const agent = withAgentOptions(
    program
      .command('sled-agent')
      .description(SUMMARIES['sled-agent'])
      .option('--name <name>', 'its name')
      .option(
        '--address <host:port>',
        'the address to listen on: 10.0.0.7:8099, [2001:db8::7]:8099, sled-7.example:8099; port 0 chooses one',
      )
      .option('--control-plane <url>', 'where the API is', `http://127.0.0.1:${DEFAULT_API_PORT}`)
      .option(
        '--data <dir>',
        'keep the records of VMs here between runs, beside the identity of a sled that has joined; real VMs then live on when the agent ends, and are found again',
      ),
  )
    .addHelpText(
      'after',
      `
Examples:
  mooring sled-agent join --token-file invite --data /var/lib/mooring --address 10.0.0.7:8099
  mooring sled-agent --data /var/lib/mooring                       run it again after that
  mooring sled-agent --name sled-1 --address 127.0.0.1:8099        without an identity, on one machine`,
    )
    .action(async (options: AgentOptions & { name?: string; address?: string; controlPlane: string }) => {
      const { loadIdentity } = await import('../../sled-agent/identity-file.ts');
      const stored = options.data === undefined ? null : await loadIdentity(options.data);
      if (stored !== null && options.data !== undefined) return serveJoined(stored, options.data, options);
      const { name, address } = options;
      if (name === undefined || address === undefined) {
        throw new Error(
          `--${name === undefined ? 'name' : 'address'}: needed for an agent without an identity; ${options.data === undefined ? 'name the folder of a sled that has joined with --data' : `there is none in ${options.data}: join it with "mooring sled-agent join"`}`,
        );
      }
      // An agent without an identity may listen at every address of its server.
      const listen = listensEverywhere(address) ? checkedListen(address) : checkedAddress(address);
      await serve({ ...options, name, listen, controlPlaneUrl: options.controlPlane, identity: undefined });
    });

  withAgentOptions(
    agent
      .command('join')
      .argument(
        '[token]',
        'what "mooring sled invite" printed; others can see it in the list of processes, unlike a file',
      )
      .description('make this server a sled: make its key here, have it signed, and run its agent')
      .option(
        '--token-file <file>',
        'read the token from this file; "-" is standard input, where it is also looked for by default',
      )
      .requiredOption('--data <dir>', 'keep the identity and the records of VMs here')
      .requiredOption(
        '--address <host:port>',
        'the address to listen on, at which the control plane and other sleds reach it; port 0 chooses one',
      )
      .option('--no-run', 'only join: "mooring sled-agent --data DIR" runs the agent later')
      .option('--json', 'print the identity (without its key) as one line of JSON'),
  )
    .addHelpText(
      'after',
      `
Examples:
  mooring sled invite sled-7 | ssh sled-7 mooring sled-agent join --data /var/lib/mooring --address 10.0.0.7:8099
  mooring sled-agent join --token-file /run/invite --data /var/lib/mooring --address 10.0.0.7:8099 --hypervisor qemu`,
    )
    .action(
      async (
        token: string | undefined,
        options: AgentOptions & { data: string; address: string; tokenFile?: string; run: boolean; json?: boolean },
      ) => {
        // The agent runs on: its line in the list of processes must not show the token.
        process.title = 'mooring sled-agent';
        const { loadIdentity } = await import('../../sled-agent/identity-file.ts');
        if ((await loadIdentity(options.data)) !== null) {
          throw new Error(
            `--data: the sled whose identity is in ${options.data} has joined already: run it with "mooring sled-agent --data ${options.data}", or remove identity.json there to join with a new invitation`,
          );
        }
        const { joinSled } = await import('../../sled-agent/join.ts');
        const stored = await joinSled({
          token: token ?? (await readToken(options.tokenFile)),
          folder: options.data,
          address: await withPort(checkedAddress(options.address)),
          ...sizeOf(options),
          movedData: options.movedData,
        });
        if (options.json) {
          const { sledId, name, address, controlPlaneUrl } = stored;
          printJson({ sled_id: sledId, name, address, control_plane_url: controlPlaneUrl });
        } else console.log(`joined ${stored.controlPlaneUrl} as sled "${stored.name}" (${stored.sledId})`);
        if (options.run) await serveJoined(stored, options.data, options);
        else if (!options.json) console.log(`run its agent with "mooring sled-agent --data ${options.data}"`);
      },
    );
}

async function readToken(file: string | undefined): Promise<string> {
  const { readFile } = await import('node:fs/promises');
  if (file !== undefined && file !== '-') return readFile(file, 'utf8');
  if (process.stdin.isTTY && file === undefined)
    throw new Error('token: give it by --token-file, on standard input, or as the argument');
  const { text } = await import('node:stream/consumers');
  return text(process.stdin);
}

/** An address in its one spelling; port 0 will do. Throws for what is the address of no host. */
function checkedAddress(address: string): string {
  const read = readHostAddress(address, { anyPort: true });
  if ('refusal' in read) throw new Error(`--address: ${read.refusal}`);
  return `${read.host}:${read.port}`;
}

/** An address to listen on, as it is. Throws where nothing can. */
function checkedListen(address: string): string {
  const refusal = refuseToListen(address);
  if (refusal !== null) throw new Error(`--address: ${refusal}`);
  return address;
}

/** Replaces port 0 by a free port before the sled joins: the control plane is told the address then. */
async function withPort(address: string): Promise<string> {
  if (!address.endsWith(':0')) return address;
  const { freePort } = await import('../../platform/host/child-process.ts');
  return address.replace(/0$/, String(await freePort(splitAddress(address).host)));
}

function sizeOf({ hypervisor, threads, memory }: AgentOptions): { threads: number; memoryBytes: number } {
  const real = hypervisor === 'qemu';
  return {
    threads: threads ?? (real ? availableParallelism() : 16),
    memoryBytes: memory ?? (real ? Math.floor(totalmem() / 2 / 1024 ** 2) * 1024 ** 2 : 64 * 1024 ** 3),
  };
}

async function serveJoined(stored: StoredIdentity, folder: string, options: AgentOptions): Promise<void> {
  const { SledIdentity } = await import('../../sled-agent/sled-identity.ts');
  const identity = new SledIdentity(stored, folder, (message) => console.error(message));
  await serve({
    ...options,
    name: stored.name,
    listen: stored.address,
    controlPlaneUrl: stored.controlPlaneUrl,
    threads: stored.threads,
    memory: stored.memoryBytes,
    sledId: stored.sledId,
    identity,
  });
}

interface ServeOptions extends AgentOptions {
  readonly name: string;
  /** `host:port`. */
  readonly listen: string;
  readonly controlPlaneUrl: string;
  readonly identity: import('../../sled-agent/sled-identity.ts').SledIdentity | undefined;
}

/** Runs an agent until a signal ends it. */
async function serve(options: ServeOptions): Promise<void> {
  const { startSledAgent } = await import('../../sled-agent/server.ts');
  const { surviveStrayErrors } = await import('../../sled-agent/guarded.ts');
  const onTrouble = (message: string) => console.error(`${new Date().toISOString()} ${message}`);
  // An agent whose address somebody else has is of no use, and must not begin to look after guests.
  await requireFree([{ ...splitAddress(options.listen), option: '--address' }]);
  const shutdown = untilShutdownSignal();
  const real = options.hypervisor === 'qemu';
  // What is prepared may have to be fetched, or be a program that does not answer.
  const preparing = real ? prepareRealVms(options) : Promise.resolve(null);
  const prepared = await Promise.race([preparing, shutdown.then(() => 'told to end' as const)]);
  if (prepared === 'told to end') process.exit(0);
  const vms = prepared;
  const starting = startSledAgent({
    name: options.name,
    listen: options.listen,
    controlPlaneUrl: options.controlPlaneUrl,
    identity: options.identity,
    ...sizeOf(options),
    transitionMs: options.transitionMs,
    networkPollMs: options.networkPollMs,
    ...(options.guestLog === undefined ? {} : { guestLogFile: options.guestLog }),
    testEndpoints: options.testEndpoints ?? false,
    ...(options.fencing
      ? {
          fencing: {
            leaseMs: Math.round(options.lease * 1000),
            sledId: options.sledId,
            vmsFolder: vms?.vmsFolder,
          },
        }
      : {}),
    dataDir: options.data ?? vms?.dataDir,
    isDataThrownAway: options.data === undefined,
    releaseInstallation: options.releaseInstallation,
    movedData: options.movedData,
    ...(vms === null ? {} : { makeHypervisor: vms.makeHypervisor }),
    onTrouble,
  });
  // It may wait for its disk for as long as that takes.
  const agent = await Promise.race([starting, shutdown.then(() => null)]);
  if (agent === null) process.exit(0);
  surviveStrayErrors(onTrouble);
  console.log(`sled agent "${options.name}": ${agent.address}${vms === null ? '' : `, ${vms.description}`}`);
  if (options.fencing) {
    // Without its lease the agent must not go on: its watchdog counts the time.
    agent.ready.then(
      () => console.log(`lease held: ${options.lease} s`),
      (error: unknown) => {
        console.error(error);
        process.exit(1);
      },
    );
  }
  await shutdown;
  if (options.data === undefined) {
    await agent.stop();
    await vms?.removeData();
  } else {
    await agent.detach();
    const howLong = options.fencing ? 'run on until the lease is over' : 'run on';
    if (real) console.log(`its VMs ${howLong}; start it again with --data ${options.data} to find them`);
  }
}

/** What an agent with real VMs is started with. Without `data`, all of it is thrown away at the end. */
async function prepareRealVms(options: AgentOptions) {
  const { mkdtemp, rm } = await import('node:fs/promises');
  const { tmpdir } = await import('node:os');
  const { join } = await import('node:path');
  const { prepareQemu } = await import('../../sled-agent/qemu/prepare-qemu.ts');
  const { QemuHypervisor } = await import('../../sled-agent/qemu-hypervisor.ts');
  const { cacheDirectory } = await import('../../stack/temporal-binary.ts');
  const qemu = await prepareQemu({ ...options, cacheDir: cacheDirectory() });
  const dataDir = options.data ?? (await mkdtemp(join(tmpdir(), 'mooring-sled-')));
  return {
    dataDir,
    vmsFolder: QemuHypervisor.vmsFolder(dataDir),
    description: `QEMU ${qemu.program.version} with ${qemu.accelerator.toUpperCase()} (${qemu.reason}), CPU ${qemu.cpuModels[0]}`,
    makeHypervisor: (
      faults: import('../../sled-agent/faults.ts').PlantedFaults,
      agentAddress: () => string,
      transport: import('../../sled-agent/peer-transport.ts').PeerTransport,
      disk: import('../../sled-agent/disk.ts').Disk,
    ): import('../../sled-agent/hypervisor.ts').WitnessedHypervisor =>
      new QemuHypervisor({
        ...qemu,
        dataDir,
        faults,
        agentAddress,
        transport,
        disk,
        endWithAgent: options.data === undefined,
        stopTimeoutMs: options.stopTimeout * 1000,
        guestLogFile: options.guestLog,
        migrationBandwidth: options.migrationBandwidth,
        onTrouble: (message) => console.error(message),
      }),
    removeData: () => (options.data === undefined ? rm(dataDir, { recursive: true, force: true }) : Promise.resolve()),
  };
}
