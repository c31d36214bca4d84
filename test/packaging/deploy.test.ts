/**
 * What is in `deploy/`: every command and option of it exists, its alerts ask for metrics that there are, and whatever checks such
 * files is run where it is to be had (`deploy-checks.ts`).
 */
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { z } from 'zod';
import { runCommand } from '../support/command.ts';
import {
  CHART_VALUES,
  DEPLOY_CHECKS,
  findProgram,
  NotThere,
  runCheck,
  templateChart,
  WHOLE_CHART_VALUES,
} from './deploy-checks.ts';

const DEPLOY = fileURLToPath(new URL('../../deploy/', import.meta.url));
const read = (path: string) => readFile(join(DEPLOY, path), 'utf8');

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

/** For each check, what it must find: a file, and what is wrong with it. */
const FAULTS: Readonly<Record<string, readonly [file: string, spoil: (text: string) => string]>> = {
  'hadolint: the Dockerfile': ['container/Dockerfile', (text) => text.replace('RUN npm ci', 'RUN cd /tmp && npm ci')],
  'check-jsonschema: the compose file, by the Compose Specification’s schema': [
    'compose/compose.yaml',
    (text) => text.replace('restart: unless-stopped', 'restrat: unless-stopped'),
  ],
  'helm: the chart': ['helm/mooring/templates/api.yaml', (text) => `${text}{{ end }}\n`],
  'kubernetes-validate: what the chart makes, by the schemas of Kubernetes 1.31': [
    'helm/mooring/templates/api.yaml',
    (text) => text.replace('replicas:', 'replica:'),
  ],
  'systemd-analyze: the units': [
    'systemd/mooring-sled-agent.service',
    (text) => text.replace('ExecStart=', 'ExecStrat='),
  ],
  'systemd-analyze: how the units are hardened: an exposure below 3': [
    'systemd/mooring-worker.service',
    (text) => text.replace(/^(Protect|Private|Restrict|SystemCall|Capability).*\n/gm, ''),
  ],
  'promtool: the rules for Prometheus': ['prometheus/mooring-rules.yaml', (text) => text.replace('rate(', 'rat(')],
  'promtool: when the rules fire': [
    'prometheus/mooring-rules.yaml',
    (text) => text.replace('(mooring_sled_silent_seconds) > 60', '(mooring_sled_silent_seconds) > 60000'),
  ],
};

describe('every check of what is there', () => {
  let copy: string;
  beforeAll(async () => {
    copy = await mkdtemp(join(tmpdir(), 'mooring-deploy-'));
  });
  afterAll(() => rm(copy, { recursive: true, force: true }));

  test.each(DEPLOY_CHECKS.map((check) => ({ ...check, title: `${check.program}: ${check.name}` })))(
    '$title: nothing is found, and what is spoiled is',
    async ({ title, ...check }) => {
      const [file, spoil] = FAULTS[title] ?? ['', () => ''];
      const good = await read(file);
      expect(spoil(good)).not.toBe(good);
      try {
        expect(await runCheck(check, DEPLOY)).toEqual([]);
        const spoiled = join(copy, String(Object.keys(FAULTS).indexOf(title)));
        await cp(DEPLOY, spoiled, { recursive: true });
        await writeFile(join(spoiled, file), spoil(good));
        expect(await runCheck(check, spoiled)).not.toEqual([]);
      } catch (error) {
        if (!(error instanceof NotThere)) throw error;
        console.warn(`SKIPPED: ${title}: ${error.message}`);
      }
    },
  );
});

const helm = await findProgram('helm');
describe.runIf(helm !== null)('the chart', () => {
  const template = async (...values: string[]) => {
    const { good, stdout, said } = await templateChart(helm ?? '', DEPLOY, values);
    return good ? stdout : said;
  };

  test('makes what it is to make', async () => {
    const plain = await template(...CHART_VALUES);
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
    const whole = await template(...WHOLE_CHART_VALUES);
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
    expect(await template(...CHART_VALUES, value)).toMatch(reason);
  });
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
