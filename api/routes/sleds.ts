import { z } from 'zod';
import { CannotAsk, type SledAddress, type SledClient, SledError } from '../../activities/sled-client.ts';
import { listSleds } from '../../db/queries/list-sleds.ts';
import { readCountedSled, readSled } from '../../db/queries/read-sled.ts';
import { addSled } from '../../db/transactions/add-sled.ts';
import { declareSledDead } from '../../db/transactions/declare-dead.ts';
import { expungeSled } from '../../db/transactions/expunge-sled.ts';
import { setSledAddress } from '../../db/transactions/set-sled-address.ts';
import { setSledPolicy } from '../../db/transactions/set-sled-policy.ts';
import { Refusal } from '../../model/refusal.ts';
import { pageParams, resultsPage } from '../../wire/operator-api/pages.ts';
import {
  provisionPolicyParams,
  provisionPolicyResponse,
  sledAdd,
  sledAdded,
  sledDeclareDead,
  sledExpunge,
  sledSetAddress,
  sledView,
} from '../../wire/operator-api/sleds.ts';
import type { AgentDescription } from '../../wire/sled-protocol.ts';
import { uuid } from '../../wire/uuid.ts';
import { changing } from '../audit.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors } from '../errors.ts';
import { nextPage, readPageIn } from '../paging.ts';
import { askFormerAddress, probeSled } from '../probe-sled.ts';
import { viewSled } from '../views/sled.ts';

/** How long an agent has to say who it is, in milliseconds. */
const ASK_MS = 3_000;

/**
 * Who is at an address that no sled has yet. `null`: an agent that doesn't say who it is; `undefined`: no agent,
 * whoever else may answer. Throws what is no sled agent's doing, such as a {@link CannotAsk}.
 */
async function askWhoIsThere(
  sleds: SledClient,
  sled: { readonly name: string; readonly address: string },
): Promise<AgentDescription | null | undefined> {
  try {
    return await sleds.describe({ ...sled, keptAgentId: null }, ASK_MS, { at: 'new address' });
  } catch (error) {
    if (!(error instanceof SledError) || error instanceof CannotAsk) throw error;
    return error.answered === true ? null : undefined;
  }
}

/** The VMMs that an agent has at an address that no sled has yet; `null` where it doesn't say. */
async function askWhatIsThere(sleds: SledClient, sled: SledAddress): Promise<string[] | null> {
  try {
    const { vmms } = await sleds.readInventory(sled, ASK_MS, { at: 'new address' });
    return vmms.map((vmm) => vmm.vmm_id);
  } catch (error) {
    if (!(error instanceof SledError) || error instanceof CannotAsk) throw error;
    return null;
  }
}

/** What is not as it should be with an agent that was asked who it is; `null`: nothing. */
function warningOf(address: string, agent: AgentDescription | null | undefined): string | null {
  if (agent === undefined)
    return `no sled agent answers at ${address}: until one does, the sled counts as silent and is placed on last`;
  return agent === null || agent.trouble.length === 0 ? null : `its agent is not well: ${agent.trouble.join('; ')}`;
}

/** Adds the endpoints of sleds. */
export function addSledRoutes(app: ApiApp, context: ApiContext): void {
  const { db, workflows, sleds, log } = context;
  const sledParams = z.object({ sled_id: uuid });
  const sledRoute = { tags: ['system'], params: sledParams };
  async function requireSled(sledId: string) {
    const found = await readCountedSled(db, sledId);
    if (found === null) throw Refusal.notFound('sled', sledId);
    return viewSled(found);
  }

  /** An operator's word about a sled, beside what the sled has to say: asked before the transaction that decides. */
  async function wordAbout(sledId: string, poweredOff = false) {
    const found = await readSled(db, sledId);
    if (found === null) throw Refusal.notFound('sled', sledId);
    const answers = found.policy !== 'expunged' && (await probeSled(sleds, found));
    return { id: found.id, word: { answers, poweredOff } };
  }

  /** The sled is dead already: should a signal be lost, the scan finds whom it was for. */
  async function signalAll(instanceIds: readonly string[], whenLost: string): Promise<void> {
    await Promise.all(instanceIds.map((instanceId) => workflows.signalUpdate(instanceId))).catch((error: unknown) =>
      log.warn({ err: error }, whenLost),
    );
  }

  app.get(
    '/v1/system/hardware/sleds',
    { schema: { tags: ['system'], querystring: pageParams, response: { 200: resultsPage(sledView), ...errors } } },
    async (request) => {
      const page = readPageIn('id_ascending', request.query);
      const rows = await listSleds(db, page);
      return {
        items: rows.map(viewSled),
        next_page: nextPage(
          page,
          rows.map((row) => row.sled),
        ),
      };
    },
  );
  app.post(
    '/v1/system/hardware/sleds',
    { schema: { tags: ['system'], body: sledAdd, response: { 201: sledAdded, ...errors } } },
    async (request, reply) => {
      if (!context.plainSleds) {
        throw Refusal.invalid(
          'address: a sled agent without an identity (plain HTTP) is not taken by this API: invite the sled with "mooring sled invite NAME" and join it on its server, or start the API with --insecure-sleds',
        );
      }
      const { memory, ...rest } = request.body;
      const agent = await askWhoIsThere(sleds, rest);
      const sled = await addSled(changing(request, db), { ...rest, memoryBytes: memory, agent });
      return reply
        .status(201)
        .send({ ...viewSled({ sled, vmmCount: 0, unheard: false }), warning: warningOf(rest.address, agent) });
    },
  );
  app.put(
    '/v1/system/hardware/sleds/:sled_id/address',
    { schema: { ...sledRoute, body: sledSetAddress, response: { 200: sledAdded, ...errors } } },
    async (request) => {
      const found = await readSled(db, request.params.sled_id);
      if (found === null) throw Refusal.notFound('sled', request.params.sled_id);
      const { address, sled_powered_off: poweredOff } = request.body;
      const isExpunged = found.policy === 'expunged';
      const former = isExpunged
        ? { askedAddress: found.address, answers: false }
        : await askFormerAddress(sleds, found);
      const there = { name: found.name, address };
      const agent = former.answers ? undefined : await askWhoIsThere(sleds, there);
      await setSledAddress(changing(request, db), found.id, {
        ...{ address, former, agent, poweredOff },
        vmmIds: agent == null ? null : await askWhatIsThere(sleds, { ...there, keptAgentId: agent.agent_id }),
      });
      return { ...(await requireSled(found.id)), warning: warningOf(address, agent) };
    },
  );
  app.get(
    '/v1/system/hardware/sleds/:sled_id',
    { schema: { ...sledRoute, response: { 200: sledView, ...errors } } },
    async (request) => requireSled(request.params.sled_id),
  );
  app.put(
    '/v1/system/hardware/sleds/:sled_id/provision-policy',
    { schema: { ...sledRoute, body: provisionPolicyParams, response: { 200: provisionPolicyResponse, ...errors } } },
    async (request) => {
      const before = await setSledPolicy(
        changing(request, db),
        request.params.sled_id,
        request.body.state === 'provisionable' ? 'in_service' : 'no_provision',
      );
      return {
        old_state: before === 'in_service' ? ('provisionable' as const) : ('non_provisionable' as const),
        new_state: request.body.state,
      };
    },
  );
  app.post(
    '/v1/system/hardware/sleds/:sled_id/declare-dead',
    { schema: { ...sledRoute, body: sledDeclareDead.nullish(), response: { 200: sledView, ...errors } } },
    async (request) => {
      const { id, word } = await wordAbout(request.params.sled_id, request.body?.sled_powered_off);
      const { instanceIds } = await declareSledDead(changing(request, db), id, word);
      await signalAll(instanceIds, 'instances of a dead sled wait for the scan');
      return requireSled(id);
    },
  );
  app.post(
    '/v1/system/hardware/sleds/:sled_id/expunge',
    { schema: { ...sledRoute, body: sledExpunge.nullish(), response: { 200: sledView, ...errors } } },
    async (request) => {
      const { id, word } = await wordAbout(request.params.sled_id, request.body?.sled_powered_off);
      const { instanceIds, awaits } = await expungeSled(changing(request, db), id, word);
      if (awaits !== null) log.warn({ sled_id: id, awaits }, 'an expunged sled may still run its guests');
      await signalAll(instanceIds, 'instances of an expunged sled wait for the scan');
      return requireSled(id);
    },
  );
}
