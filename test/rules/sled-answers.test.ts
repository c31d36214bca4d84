/** What a sled agent's answer, or the lack of one, is taken for. */
import { createServer } from 'node:http';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { classifyFailure } from '../../activities/failures.ts';
import { SledClient, SledError } from '../../activities/sled-client.ts';
import { classifySledAnswer, type SledCommand } from '../../model/sled-answer.ts';
import { VMM_STATES, WIRE_VMM_STATES } from '../../model/states.ts';
import { freePort } from '../../platform/host/child-process.ts';
import { sledVmmState } from '../../wire/sled-protocol.ts';

const COMMANDS: readonly SledCommand[] = ['register', 'unregister', 'state', 'read'];

describe('an answer', () => {
  test('means that the VMM is gone only as a 404 with the code', () => {
    for (const command of COMMANDS) {
      expect(classifySledAnswer(command, 404, 'NO_SUCH_INSTANCE')).toBe('gone');
      for (const code of [undefined, 'NOT_FOUND']) expect(classifySledAnswer(command, 404, code)).toBe('retry');
      for (const status of [410, 500, 503])
        expect(classifySledAnswer(command, status, 'NO_SUCH_INSTANCE')).toBe('retry');
    }
  });
  test.each([400, 401, 403, 409, 413, 422])('%i is final, but not to unregister', (status) => {
    for (const command of ['register', 'state', 'read'] as const)
      expect(classifySledAnswer(command, status, 'REFUSED')).toBe('refused');
    expect(classifySledAnswer('unregister', status, 'REFUSED')).toBe('retry');
  });
  test.each([400, 401, 403, 409, 413, 422])('%i without a code is nobody’s word', (status) => {
    for (const command of COMMANDS) expect(classifySledAnswer(command, status, undefined)).toBe('retry');
  });
  test.each([408, 410, 425, 429, 500, 502, 503, 504])('%i is to be tried again', (status) => {
    for (const command of COMMANDS)
      for (const code of [undefined, 'BUSY']) expect(classifySledAnswer(command, status, code)).toBe('retry');
  });
});

describe('the lack of an answer', () => {
  const client = new SledClient();
  const silent = createServer(() => {});
  let address: string;
  beforeAll(async () => {
    const port = await freePort();
    await new Promise<void>((resolve) => silent.listen(port, '127.0.0.1', resolve));
    address = `127.0.0.1:${port}`;
  });
  afterAll(async () => {
    await client.close();
    silent.closeAllConnections();
    silent.close();
  });
  const kindOf = async (at: string) => {
    const error = await client
      .readState({ name: 'sled-1', address: at, keptAgentId: null }, 'v', 300)
      .catch((failure: unknown) => failure);
    return error instanceof SledError ? error.kind : error;
  };

  test('proves nothing: a time-out, and a refused connection', async () => {
    expect(await kindOf(address)).toBe('unavailable');
    expect(await kindOf(`127.0.0.1:${await freePort()}`)).toBe('unavailable');
  });
  test('is tried again, where a refusal and "gone" are final', () => {
    expect(classifyFailure(new SledError('unavailable', ''))).toMatchObject({ nonRetryable: false });
    expect(classifyFailure(new SledError('refused', ''))).toMatchObject({ nonRetryable: true, type: 'SledRefused' });
    expect(classifyFailure(new SledError('gone', ''))).toMatchObject({ nonRetryable: true, type: 'NoSuchVmm' });
    const unforeseen = new Error('what is this?');
    expect(classifyFailure(unforeseen)).toBe(unforeseen);
  });
});

test('a report of a state that only the control plane writes is refused', () => {
  const report = (state: string) => ({ vmm_state: { state, gen: 3, time_updated: new Date().toISOString() } });
  for (const state of VMM_STATES)
    expect(sledVmmState.safeParse(report(state)).success).toBe((WIRE_VMM_STATES as readonly string[]).includes(state));
});
