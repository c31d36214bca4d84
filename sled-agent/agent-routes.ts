/** The protocol of section 7 of docs/design.md as HTTP routes, each with the faults that tests plant on it. */
import { setTimeout as pause } from 'node:timers/promises';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { z } from 'zod';
import {
  AGENT_ID_HEADER,
  INSTALLATION_HEADER,
  registerRequest,
  serialConsoleRequest,
  vmmStateRequest,
} from '../wire/sled-protocol.ts';
import { uuid } from '../wire/uuid.ts';
import { AgentRefusal, type SledAgent } from './agent.ts';
import { AGENT_ROUTE } from './agent-app.ts';
import type { AgentDescriber } from './agent-description.ts';
import { type FaultCall, fault, type PlantedFaults } from './faults.ts';
import type { InstallationKeeper } from './installation-keeper.ts';
import type { TestFaults } from './test-faults.ts';

const vmmParams = z.object({ vmm_id: uuid });

/** Serves the protocol, to the installation that `installations` keeps alone. */
export function addVmmRoutes(
  app: FastifyInstance,
  agent: SledAgent,
  faults: PlantedFaults,
  installations: InstallationKeeper,
): void {
  const answer = answerWithFaults(agent, faults);
  app.addHook('onRequest', async (request) => {
    if (request.url.startsWith('/vmms')) installations.requireSame(request.headers[INSTALLATION_HEADER]);
  });
  /** Does what a call of an installation changes. */
  const changing =
    <Done>(request: FastifyRequest, act: () => Promise<Done>, { mustWait = false } = {}) =>
    async (): Promise<Done> => {
      installations.keep(request.headers[INSTALLATION_HEADER], mustWait);
      return act();
    };
  app.put('/vmms/:vmm_id', async (request, reply) => {
    const { vmm_id } = vmmParams.parse(request.params);
    const body = registerRequest.parse(request.body);
    return answer(
      request,
      reply,
      'register',
      vmm_id,
      body.vmm_spec.name,
      changing(request, async () => agent.register(vmm_id, body), { mustWait: true }),
    );
  });
  app.delete('/vmms/:vmm_id', async (request, reply) => {
    const { vmm_id } = vmmParams.parse(request.params);
    return answer(
      request,
      reply,
      'unregister',
      vmm_id,
      agent.nameOf(vmm_id),
      changing(request, async () => ({
        updated_runtime: await agent.unregister(vmm_id),
      })),
    );
  });
  app.put('/vmms/:vmm_id/state', async (request, reply) => {
    const { vmm_id } = vmmParams.parse(request.params);
    const { state } = vmmStateRequest.parse(request.body);
    return answer(
      request,
      reply,
      `state:${state.type}`,
      vmm_id,
      agent.nameOf(vmm_id),
      changing(request, async () => ({
        updated_runtime: await agent.command(vmm_id, state),
      })),
    );
  });
  app.get('/vmms/:vmm_id/state', async (request, reply) => {
    const { vmm_id } = vmmParams.parse(request.params);
    return answer(request, reply, 'get', vmm_id, agent.nameOf(vmm_id), () => agent.read(vmm_id));
  });
  app.get('/vmms', async (request, reply) =>
    answer(request, reply, 'list', null, null, () => ({ vmms: agent.inventory() })),
  );
  app.get('/vmms/:vmm_id/serial-console', async (request) => {
    const { vmm_id } = vmmParams.parse(request.params);
    const { from_start, max_bytes } = serialConsoleRequest.parse(request.query);
    return agent.readConsole(vmm_id, from_start, max_bytes);
  });
}

/**
 * Serves what the agent says of itself: beside the protocol, and before the agent knows what runs here. Every answer says who
 * gives it.
 */
export function addAgentRoute(app: FastifyInstance, describer: AgentDescriber): void {
  app.addHook('onSend', async (_, reply) => {
    const { agentId } = describer;
    if (agentId !== null) reply.header(AGENT_ID_HEADER, agentId);
  });
  app.get(AGENT_ROUTE, async () => {
    try {
      return describer.describe();
    } catch (error) {
      const why = error instanceof Error ? error.message : error;
      throw new AgentRefusal(503, 'NO_AGENT_ID', `the id of this agent can't be kept in its data: ${why}`);
    }
  });
}

/** Serves the endpoints below `/test/`, by which faults are planted. */
export function addTestRoutes(app: FastifyInstance, faults: TestFaults): void {
  app.post('/test/faults', async (request, reply) => {
    faults.plant(fault.parse(request.body));
    return reply.status(204).send();
  });
  app.delete('/test/faults', async (_, reply) => {
    faults.clear();
    return reply.status(204).send();
  });
  app.post('/test/vmms/:vmm_id/:what', async (request, reply) => {
    const { vmm_id, what } = vmmParams.extend({ what: z.enum(['lose', 'halt', 'crash']) }).parse(request.params);
    faults[what](vmm_id);
    return reply.status(204).send();
  });
  app.get('/test/guest-log', async () => ({ entries: faults.guestLog() }));
}

/** Makes what answers a call: by `act`, with the fault that is planted for the call, if any. */
function answerWithFaults(agent: SledAgent, faults: PlantedFaults) {
  return async (
    request: FastifyRequest,
    reply: FastifyReply,
    call: FaultCall,
    vmmId: string | null,
    name: string | null,
    act: () => unknown,
  ) => {
    const planted = faults.takeCall(call, vmmId, name);
    switch (planted?.type) {
      case undefined:
        return act();
      case 'refuse':
        if (call === 'state:migration_target' && vmmId !== null && planted.status < 500) agent.refuseMigration(vmmId);
        return reply.status(planted.status).send({
          error_code: planted.error_code ?? 'REFUSED',
          message: planted.message ?? 'refused by a planted fault',
          request_id: request.id,
        });
      case 'delay':
        await pause(planted.ms);
        return act();
      case 'answer_late': {
        const done = await act();
        await pause(planted.ms);
        return done;
      }
      case 'drop_before':
        request.raw.socket.destroy();
        return reply.hijack();
      case 'drop_after':
        await act();
        request.raw.socket.destroy();
        return reply.hijack();
      case 'garbage':
        await act();
        return { nonsense: true };
    }
  };
}
