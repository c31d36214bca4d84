/**
 * What is in `deploy/`: every command and option of it exists, its alerts ask for metrics that there are, and whatever checks such
 * files is run where it is installed (systemd-analyze, helm, promtool).
 */
import { execFile } from 'node:child_process';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { z } from 'zod';
import { runCommand } from '../support/command.ts';

const DEPLOY = fileURLToPath(new URL('../../deploy/', import.meta.url));
const run = promisify(execFile);
const read = (path: string) => readFile(join(DEPLOY, path), 'utf8');

async function isThere(program: string, ...args: string[]): Promise<boolean> {
  return run(program, args).then(
    () => true,
    (error: NodeJS.ErrnoException) => error.code !== 'ENOENT',
  );
}

/** Every file of `deploy/` that holds commands. */
async function files(): Promise<string[]> {
  const found = await readdir(DEPLOY, { recursive: true });
  return found.filter((name) => /\.(service|yaml|yml|tpl|txt|example)$|Dockerfile$/.test(name)).sort();
}

const COMMANDS = [
  'worker',
  'api',
  'sled-agent',
  'migrate',
  'authority',
  'token',
  'sled',
  'deployment',
  'instance',
  'login',
];

test('every command of it exists, and every option is one of the command it is given to', async () => {
  const wrong: string[] = [];
  const helps = new Map<string, string>();
  const help = async (words: readonly string[]) => {
    const key = words.join(' ');
    const known = helps.get(key) ?? (await runCommand([...words, '--help'])).stdout;
    helps.set(key, known);
    return known;
  };
  let looked = 0;
  for (const file of await files()) {
    const text = await read(file);
    // One line of a unit or a script, or the list of arguments that a container is started with.
    const calls = [
      ...[...text.matchAll(/\bmooring ((?:[a-z]+(?:-[a-z]+)*)(?: [^\n"|>;&]*)?)/g)].map(([, call]) => call ?? ''),
      ...[...text.matchAll(/(?:command|args):\n((?:[ ]+(?:- [^\n]*|\{\{[^\n]*)\n)+)/g)].map(([, list]) =>
        [...(list ?? '').matchAll(/- ([^\n|]+)/g)].map(([, word]) => word ?? '').join(' '),
      ),
    ];
    for (const call of calls) {
      const words = call.trim().split(/\s+/);
      if (!COMMANDS.includes(words[0] ?? '')) continue;
      const named = words.slice(0, words.findIndex((word) => !/^[a-z]+(-[a-z]+)*$/.test(word)) >>> 0);
      const path =
        named.length > 1 && /^(create|invite|join|promote|list)$/.test(named[1] ?? '')
          ? named.slice(0, 2)
          : named.slice(0, 1);
      const known = await help(path);
      if (!known.startsWith('Usage:')) wrong.push(`${file}: mooring ${path.join(' ')}`);
      for (const option of call.matchAll(/--[a-z][a-z-]*/g)) {
        looked += 1;
        if (!known.includes(`${option[0]} `) && !known.includes(`${option[0]}\n`))
          wrong.push(`${file}: mooring ${path.join(' ')} ${option[0]}`);
      }
    }
  }
  expect(wrong).toEqual([]);
  expect(looked).toBeGreaterThan(30);
});

const rulesFile = z.object({
  groups: z.array(z.object({ rules: z.array(z.object({ alert: z.string(), expr: z.string() })) })),
});
const METRIC = /\b(?:mooring|temporal)_[a-z_]+\b/g;

test('every alert that docs/deployment.md advises is a rule for Prometheus, and the other way round', async () => {
  const docs = await readFile(join(DEPLOY, '../docs/deployment.md'), 'utf8');
  const table = docs.slice(docs.indexOf('| Alert when |'), docs.indexOf('Traces go from a call'));
  const metricsOf = (text: string) => [...new Set(text.match(METRIC))].sort().join(' ');
  const advised = table
    .split('\n')
    .slice(2)
    .flatMap((line) => /`((?:[^`\\]|\\.)+)`/.exec(line)?.[1] ?? [])
    .map(metricsOf);
  const { groups } = rulesFile.parse(parse(await read('prometheus/mooring-rules.yaml')));
  const ruled = groups.flatMap(({ rules }) => rules).map(({ expr }) => metricsOf(expr));
  expect(ruled.sort()).toEqual(advised.sort());
});

describe.runIf(await isThere('systemd-analyze', '--version'))('systemd', () => {
  const units = ['mooring-worker.service', 'mooring-api.service', 'mooring-sled-agent.service'];
  test.each(units)('%s is understood, and hardened', async (unit) => {
    const verified = await run('systemd-analyze', ['verify', join(DEPLOY, 'systemd', unit)]).catch((error) => error);
    const said = `${verified.stdout}${verified.stderr}`.split('\n').filter((line) => line.includes('mooring-'));
    // The program is not installed here.
    expect(said.filter((line) => !/is not executable: No such file/.test(line))).toEqual([]);
    const { stdout } = await run('systemd-analyze', ['security', '--offline=true', join(DEPLOY, 'systemd', unit)]);
    expect(Number(/Overall exposure level for \S+: ([\d.]+)/.exec(stdout)?.[1])).toBeLessThan(3);
  });
});

/** A Helm that was built without its makefile takes itself for one of an old Kubernetes. */
const KUBERNETES = ['--kube-version', '1.31.0'];
const VALUES = [
  'database.secretName=mooring-database',
  'temporal.address=temporal.example:7233',
  'authority.secretName=mooring-authority',
  'sleds.url=https://sleds.example:12221',
];

describe.runIf(await isThere('helm', 'version'))('the chart', () => {
  const chart = join(DEPLOY, 'helm/mooring');
  const template = (...more: string[]) =>
    run('helm', [
      'template',
      'm',
      chart,
      ...KUBERNETES,
      ...[...VALUES, ...more].flatMap((value) => ['--set', value]),
    ]).then(
      ({ stdout }) => stdout,
      (error: { stderr: string }) => error.stderr,
    );

  test('lints, and makes what it is to make', async () => {
    await run('helm', ['lint', '--strict', chart, ...KUBERNETES, ...VALUES.flatMap((value) => ['--set', value])]);
    const plain = await template();
    expect(plain.match(/^kind: \w+$/gm)?.sort()).toEqual(
      [
        'Deployment',
        'Deployment',
        'NetworkPolicy',
        'NetworkPolicy',
        'PodDisruptionBudget',
        'PodDisruptionBudget',
        'Service',
        'Service',
        'ServiceAccount',
      ].map((kind) => `kind: ${kind}`),
    );
    expect(plain).not.toContain('--no-migrate');
    const whole = await template(
      'database.migrateSecretName=owner',
      'api.tlsSecretName=tls',
      'metrics.podMonitor=true',
    );
    expect(whole).toContain('kind: Job');
    expect(whole).toContain('kind: PodMonitor');
    expect(whole.match(/--no-migrate/g)).toHaveLength(2);
    expect(whole).toContain('--tls-cert=/etc/mooring/tls/tls.crt');
    expect(whole).not.toContain('--insecure');
  });

  test.each([
    ['temporal.address=http://temporal', /address/],
    ['sleds.url=http://sleds', /url/],
    ['database.secretName=', /secretName/],
  ])('refuses %s, by its name', async (value, reason) => {
    expect(await template(value)).toMatch(reason);
  });
});

test.runIf(await isThere('promtool', '--version'))('promtool finds the rules good, and their tests pass', async () => {
  await run('promtool', ['check', 'rules', join(DEPLOY, 'prometheus/mooring-rules.yaml')]);
  await run('promtool', ['test', 'rules', join(DEPLOY, 'prometheus/mooring-rules.test.yaml')]);
});

const service = z.object({
  image: z.string(),
  depends_on: z.record(z.string(), z.unknown()).optional(),
  volumes: z.array(z.string()).optional(),
});

test('what a service of the compose file needs is in it', async () => {
  const { services, volumes } = z
    .object({ services: z.record(z.string(), service), volumes: z.record(z.string(), z.unknown()) })
    .parse(parse(await read('compose/compose.yaml'), { merge: true }));
  const example = await read('compose/.env.example');
  for (const [name, { depends_on, volumes: mounted = [] }] of Object.entries(services)) {
    for (const other of Object.keys(depends_on ?? {})) expect(Object.keys(services), name).toContain(other);
    for (const mount of mounted) expect(Object.keys(volumes), name).toContain(mount.split(':')[0]);
  }
  for (const [, variable] of (await read('compose/compose.yaml')).matchAll(/(?<!\$)\$\{([A-Z_]+)/g))
    expect(example).toContain(`${variable}=`);
});
