/** A setting of the environment that is there, and empty, is not set: each that there is. */
import { readFileSync } from 'node:fs';
import { Command } from 'commander';
import { afterEach, expect, test } from 'vitest';
import { hostsOption } from '../../cli/processes.ts';
import { forgetEmptySettings } from '../../cli/program.ts';

const before = { ...process.env };
afterEach(() => {
  process.env = { ...before };
});

const promised: unknown = JSON.parse(readFileSync(new URL('../promises/0.2.0.json', import.meta.url), 'utf8'));
const { environment } = promised as { readonly environment: readonly string[] };
const ours = environment.filter((name) => name.startsWith('MOORING_'));

test('every setting of ours that is empty is forgotten, and no other one', () => {
  expect(ours).toContain('MOORING_HOSTS');
  const values = Object.fromEntries(ours.map((name) => [name, 'value']));
  for (const name of ours)
    for (const empty of ['', ' ', '\t\n']) {
      const given = { ...values, [name]: empty, TEMPORAL_ADDRESS: '', MOORING: '' };
      forgetEmptySettings(given);
      const { [name]: _, ...rest } = values;
      expect(given).toEqual({ ...rest, TEMPORAL_ADDRESS: '', MOORING: '' });
    }
});

test('hosts that are empty leave the option unset', async () => {
  const parse = async () => {
    const command = new Command().addOption(hostsOption()).exitOverride();
    await command.parseAsync([], { from: 'user' });
    return command.opts().hosts;
  };
  process.env.MOORING_HOSTS = 'web, mooring.lan';
  expect(await parse()).toEqual(['web', 'mooring.lan']);
  process.env.MOORING_HOSTS = '';
  forgetEmptySettings(process.env);
  expect(await parse()).toBeUndefined();
});
