import { availableParallelism, totalmem } from 'node:os';
import { type Command, Option } from 'commander';
import pc from 'picocolors';
import { DEFAULT_BEAT_MS, DEFAULT_LEASE_MS } from '../../model/lease.ts';
import { DEFAULT_API_PORT } from '../context.ts';
import { printJson } from '../output.ts';
import { parseSize } from '../sizes.ts';

/** What can run the VMs of a sled. */
export const HYPERVISORS = ['simulated', 'qemu'] as const;
export type HypervisorChoice = (typeof HYPERVISORS)[number];

const hypervisorOption = () =>
  new Option('--hypervisor <which>', 'what runs the VMs').choices(HYPERVISORS).default('simulated');

/** Resolves at the first SIGINT or SIGTERM; a second one ends the process at once. */
export async function untilTold(): Promise<void> {
  await new Promise<void>((resolve) => {
    let told = false;
    const hear = () => {
      if (told) process.exit(130);
      told = true;
      resolve();
    };
    process.on('SIGINT', hear);
    process.on('SIGTERM', hear);
  });
}

/** Adds `mooring up`, `worker`, `api`, `sled-agent` and `demo`. Heavy modules are loaded when a command needs them. */
export function addProcessCommands(program: Command): void {
  program
    .command('up')
    .description('run a whole stack: PostgreSQL, Temporal with its Web UI, a worker, the API, sleds')
    .option('--data <dir>', 'keep the data here between runs; thrown away by default')
    .option('--api-port <port>', 'port of the API; 0 chooses one', Number, DEFAULT_API_PORT)
    .option('--temporal-ui-port <port>', 'port of the Temporal Web UI; 0 chooses one', Number, 0)
    .option('--sleds <n>', 'how many sleds; 0 to bring your own', Number, 3)
    .addOption(hypervisorOption())
    .option('--test-endpoints', 'let the sleds take planted faults over HTTP')
    .option('--json', 'print one line of JSON when it is ready')
    .action(
      async (options: {
        data?: string;
        apiPort: number;
        temporalUiPort: number;
        sleds: number;
        hypervisor: HypervisorChoice;
        testEndpoints?: boolean;
        json?: boolean;
      }) => {
        const { startStack } = await import('../../worker/stack.ts');
        const told = untilTold();
        const stack = await startStack({
          dataDir: options.data,
          apiPort: options.apiPort,
          temporalUiPort: options.temporalUiPort,
          sleds: options.sleds,
          hypervisor: options.hypervisor,
          testEndpoints: options.testEndpoints ?? false,
          onProgress: (message) => options.json || console.log(`${pc.green('✓')} ${message}`),
        });
        const where = {
          api_url: stack.apiUrl,
          temporal_address: stack.temporalAddress,
          temporal_ui_url: stack.temporalUiUrl,
          sleds: stack.sleds.map(({ id, name, agent }) => ({ id, name, address: agent.address })),
        };
        if (options.json) printJson(where);
        else {
          const flag = stack.apiUrl.endsWith(`:${DEFAULT_API_PORT}`) ? '' : ` --api-url ${stack.apiUrl}`;
          console.log(
            [
              '',
              `${pc.bold('Ready.')} In another terminal:`,
              `  npx mooring instance create web${options.hypervisor === 'qemu' ? ' --memory 128MiB' : ''}${flag}`,
              ...(options.hypervisor === 'qemu' ? [`  npx mooring instance console web${flag}`] : []),
              `  npx mooring instance migrate web --to sled-2${flag}`,
              `  npx mooring instance list${flag}`,
              ...(stack.temporalUiUrl === null ? [] : [`Watch the sagas at ${pc.cyan(stack.temporalUiUrl)}`]),
              'Ctrl-C stops everything.',
            ].join('\n'),
          );
        }
        await told;
        if (!options.json) console.log('stopping…');
        await stack.stop();
      },
    );

  program
    .command('worker')
    .description('run one worker process, against DATABASE_URL and TEMPORAL_ADDRESS')
    .option('--metrics <ip:port>', 'show /metrics, /healthz and /readyz here', process.env.MOORING_METRICS_LISTEN)
    .action(async (options: { metrics?: string }) => {
      const { databaseUrl, temporal } = await externalParts();
      const { startWorker } = await import('../../worker/worker.ts');
      const { migrateDatabase } = await import('../../db/connect.ts');
      const { createLog } = await import('../../worker/log.ts');
      const told = untilTold();
      await migrateDatabase(databaseUrl);
      const worker = await startWorker({
        databaseUrl,
        temporal,
        log: createLog('worker'),
        metricsListen: options.metrics,
      });
      console.log(`worker: running${worker.metricsUrl === null ? '' : `, metrics at ${worker.metricsUrl}/metrics`}`);
      await Promise.race([told, worker.ended]);
      await worker.stop();
    });

  program
    .command('api')
    .description('run one API process, against DATABASE_URL and TEMPORAL_ADDRESS')
    .option('--host <address>', 'the address to listen on', '127.0.0.1')
    .option('--port <port>', 'the port to listen on; 0 chooses one', Number, DEFAULT_API_PORT)
    .option('--temporal-ui-url <url>', 'where the Temporal Web UI is, for links')
    .option('--lease-beat-ms <ms>', 'how often to write down that leases can be renewed', Number, DEFAULT_BEAT_MS)
    .option('--metrics <ip:port>', 'show /metrics, /healthz and /readyz here', process.env.MOORING_METRICS_LISTEN)
    .action(
      async (options: {
        host: string;
        port: number;
        temporalUiUrl?: string;
        leaseBeatMs: number;
        metrics?: string;
      }) => {
        const { databaseUrl, temporal } = await externalParts();
        const { startApi } = await import('../../api/server.ts');
        const { migrateDatabase } = await import('../../db/connect.ts');
        const { createLog } = await import('../../worker/log.ts');
        const told = untilTold();
        await migrateDatabase(databaseUrl);
        const api = await startApi({
          databaseUrl,
          temporal,
          ...options,
          temporalUiUrl: options.temporalUiUrl ?? null,
          metricsListen: options.metrics,
          log: createLog('api'),
        });
        console.log(`API: ${api.url}`);
        await told;
        await api.stop();
      },
    );

  program
    .command('sled-agent')
    .description('run a sled agent with simulated or real VMs; add it with "mooring sled add"')
    .requiredOption('--name <name>', 'its name')
    .requiredOption('--address <ip:port>', 'the address to listen on; port 0 chooses one')
    .option('--control-plane <url>', 'where the API is', `http://127.0.0.1:${DEFAULT_API_PORT}`)
    .addOption(hypervisorOption())
    .option(
      '--data <dir>',
      'keep the book here between runs; real VMs then live on when the agent ends, and are found again',
    )
    .option('--threads <n>', 'hardware threads for VMs; 16 for simulated ones, else what this machine has', Number)
    .option(
      '--memory <size>',
      'memory for VMs; 64GiB for simulated ones, else half of what this machine has',
      parseSize,
    )
    .option('--transition-ms <ms>', 'how long a transition of a simulated VM takes', Number, 50)
    .option('--stop-timeout <seconds>', 'how long a real guest may take to power off', Number, 30)
    .addOption(
      new Option(
        '--accelerator <which>',
        'what speeds real VMs up; "auto" is KVM where a guest boots with it, else TCG',
      )
        .choices(['auto', 'kvm', 'tcg'])
        .default('auto'),
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
    .option('--sled-id <id>', 'which sled this is; by default the control plane is asked by its name')
    .option('--test-endpoints', 'take planted faults over HTTP')
    .action(
      async (options: {
        name: string;
        address: string;
        controlPlane: string;
        hypervisor: HypervisorChoice;
        data?: string;
        threads?: number;
        memory?: number;
        transitionMs: number;
        networkPollMs: number;
        guestLog?: string;
        fencing?: boolean;
        lease: number;
        sledId?: string;
        stopTimeout: number;
        accelerator: 'auto' | 'kvm' | 'tcg';
        kernel?: string;
        initramfs?: string;
        testEndpoints?: boolean;
      }) => {
        const { startSledAgent } = await import('../../sled-agent/server.ts');
        const told = untilTold();
        const real = options.hypervisor === 'qemu';
        const vms = real ? await prepareRealVms(options) : null;
        const agent = await startSledAgent({
          name: options.name,
          listen: options.address,
          controlPlaneUrl: options.controlPlane,
          threads: options.threads ?? (real ? availableParallelism() : 16),
          memoryBytes: options.memory ?? (real ? Math.floor(totalmem() / 2) : 64 * 1024 ** 3),
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
                  onTrouble: (message) => console.error(`${new Date().toISOString()} ${message}`),
                },
              }
            : {}),
          dataDir: options.data ?? vms?.dataDir,
          ...(vms === null ? {} : { makeHypervisor: vms.makeHypervisor }),
        });
        console.log(`sled agent "${options.name}": ${agent.address}${vms === null ? '' : `, ${vms.description}`}`);
        if (options.fencing) {
          // What it can't take up, nobody may: its watchdog has the clock.
          agent.ready.then(
            () => console.log(`lease held: ${options.lease} s`),
            (error: unknown) => {
              console.error(error);
              process.exit(1);
            },
          );
        }
        await told;
        if (options.data === undefined) {
          await agent.stop();
          await vms?.removeData();
        } else {
          await agent.detach();
          const howLong = options.fencing ? 'run on until the lease is over' : 'run on';
          if (real) console.log(`its VMs ${howLong}; start it again with --data ${options.data} to find them`);
        }
      },
    );

  program
    .command('demo')
    .description('play the main job on a stack of its own: start, live-migrate, fail and clean up')
    .option('--keep', 'leave everything running afterwards')
    .option('--scenario <file>', 'the scenario to play')
    .addOption(hypervisorOption())
    .action(async (options: { keep?: boolean; scenario?: string; hypervisor: HypervisorChoice }) => {
      const { runDemo } = await import('../demo.ts');
      const { keep = false, scenario, hypervisor } = options;
      process.exitCode = (await runDemo({ keep, scenarioFile: scenario, hypervisor })) ? 0 : 1;
    });
}

async function externalParts() {
  const { readTemporalSettings } = await import('../../worker/temporal-connection.ts');
  const databaseUrl = process.env.DATABASE_URL;
  if (databaseUrl === undefined || databaseUrl === '') {
    throw new Error(
      'DATABASE_URL is not set: name the PostgreSQL to work on, for example postgres://user@host/mooring ("mooring up" brings its own)',
    );
  }
  return { databaseUrl, temporal: readTemporalSettings(process.env) };
}

/** What an agent with real VMs is started with. Without `data`, all of it is thrown away at the end. */
async function prepareRealVms(options: {
  data?: string;
  stopTimeout: number;
  accelerator: 'auto' | 'kvm' | 'tcg';
  kernel?: string;
  initramfs?: string;
  guestLog?: string;
}) {
  const { mkdtemp, rm } = await import('node:fs/promises');
  const { tmpdir } = await import('node:os');
  const { join } = await import('node:path');
  const { prepareQemu } = await import('../../sled-agent/qemu/prepare-qemu.ts');
  const { QemuHypervisor } = await import('../../sled-agent/qemu-hypervisor.ts');
  const { cacheDirectory } = await import('../../worker/temporal-server.ts');
  const qemu = await prepareQemu({ ...options, cacheDir: cacheDirectory() });
  const dataDir = options.data ?? (await mkdtemp(join(tmpdir(), 'mooring-sled-')));
  return {
    dataDir,
    vmsFolder: QemuHypervisor.vmsFolder(dataDir),
    description: `QEMU ${qemu.program.version} with ${qemu.accelerator.toUpperCase()} (${qemu.reason})`,
    makeHypervisor: (
      faults: import('../../sled-agent/faults.ts').FaultBook,
      agentAddress: () => string,
    ): import('../../sled-agent/hypervisor.ts').WitnessedHypervisor =>
      new QemuHypervisor({
        ...qemu,
        dataDir,
        faults,
        agentAddress,
        endWithAgent: options.data === undefined,
        stopTimeoutMs: options.stopTimeout * 1000,
        guestLogFile: options.guestLog,
        onTrouble: (message) => console.error(message),
      }),
    removeData: () => (options.data === undefined ? rm(dataDir, { recursive: true, force: true }) : Promise.resolve()),
  };
}
