import { randomUUID } from 'node:crypto';
import { eq } from 'drizzle-orm';
import { z } from 'zod';
import { SledError } from '../../activities/sled-client.ts';
import { listInstances } from '../../db/queries/read-instance.ts';
import { readLinkedVmms, type VmmPlace } from '../../db/queries/saga-progress.ts';
import { sled } from '../../db/schema.ts';
import { applyReport } from '../../db/transactions/apply-report.ts';
import { checkMigration } from '../../db/transactions/claim-migration.ts';
import { failVmm } from '../../db/transactions/fail-vmm.ts';
import { createInstance, requireProject, updateInstanceRecord } from '../../db/transactions/manage-inventory.ts';
import {
  deleteInstance,
  recordForceStop,
  recordRunningIntent,
  recordStop,
} from '../../db/transactions/record-intent.ts';
import { type ForceStopSide, judgeForceStop } from '../../model/force-stop.ts';
import { refusalMessage, verdict } from '../../model/legality.ts';
import { Refusal } from '../../model/refusal.ts';
import { isGoneVmmState } from '../../model/states.ts';
import { workflowIds } from '../../model/workflow-names.ts';
import { signalIfNeeded } from '../../temporal/signal-update.ts';
import {
  externalStateSchema,
  instanceCreate,
  instanceForceStop,
  instanceMigrate,
  instanceUpdate,
  instanceView,
} from '../../wire/operator-api/instances.ts';
import { isUuid, nameOrId } from '../../wire/operator-api/names.ts';
import { DEFAULT_PAGE_LIMIT, pageParams, resultsPage } from '../../wire/operator-api/pages.ts';
import { changing } from '../audit.ts';
import {
  type ApiApp,
  type ApiContext,
  idempotencyKey,
  location,
  projectQuery,
  showInstance,
  subjectInstance,
  waitMs,
} from '../context.ts';
import { errors } from '../errors.ts';
import { OperationFailed, type OperationRequest } from '../operations.ts';
import { readPage, writePage } from '../paging.ts';
import { viewInstance } from '../views.ts';

const REBOOT_CALL_MS = 5_000;
/** How long a sled that is said to be powered off is listened to, in milliseconds. */
const PROBE_MS = 3_000;
/** How often a stop by force looks again when the instance's VMMs change under it. */
const FORCE_STOP_ROUNDS = 3;

/** Adds the endpoints of instances. */
export function addInstanceRoutes(app: ApiApp, context: ApiContext): void {
  const { db, workflows, operations, sleds, log } = context;
  const registerTimeout =
    context.registerTimeoutMs === undefined ? {} : { registerTimeoutMs: context.registerTimeoutMs };
  const instanceParams = z.object({ instance: nameOrId });
  const accepted = { 202: instanceView, ...errors };

  // --- Instances ---

  app.get(
    '/v1/instances',
    {
      schema: {
        tags: ['instances'],
        querystring: pageParams.extend({
          project: nameOrId.optional(),
          state: externalStateSchema.optional(),
          sled: z.guid().optional(),
        }),
        response: { 200: resultsPage(instanceView), ...errors },
      },
    },
    async (request) => {
      const { project: owner, state, sled: sledId } = request.query;
      const limit = request.query.limit ?? DEFAULT_PAGE_LIMIT;
      const order = request.query.sort_by ?? 'name_ascending';
      const page = readPage(request.query.page_token, order);
      const projectId = owner === undefined ? undefined : (await requireProject(db, owner, isUuid(owner))).id;
      // Names are unique only within a project.
      const sorted = projectId === undefined ? 'id_ascending' : page.order;
      const records = await listInstances(db, {
        projectId,
        sledId,
        externalState: state,
        order: sorted,
        after: page.after,
        limit,
      });
      const last = records.at(-1)?.instance;
      const token =
        records.length < limit || last === undefined
          ? null
          : writePage(page.order, sorted === 'id_ascending' ? last.id : last.name);
      return { items: records.map(viewInstance), next_page: token };
    },
  );

  app.post(
    '/v1/instances',
    {
      schema: {
        tags: ['instances'],
        querystring: z.object({ project: nameOrId }),
        body: instanceCreate,
        response: { 201: instanceView, ...errors },
      },
    },
    async (request, reply) => {
      const { project: owner } = request.query;
      const { body } = request;
      const { id: projectId } = await requireProject(db, owner, isUuid(owner));
      const key = idempotencyKey(request);
      const newId: string = randomUUID();
      request.audit?.about(newId, projectId);
      const instanceId = await createInstance(changing(request, db), {
        id: newId,
        idempotencyKey: key,
        projectId,
        name: body.name,
        description: body.description,
        hostname: body.hostname,
        ncpus: body.ncpus,
        memoryBytes: body.memory,
        autoRestartPolicy: body.auto_restart_policy ?? null,
        restartPriority: body.restart_priority,
        antiAffinityGroups: (body.anti_affinity_groups ?? []).map((named) =>
          isUuid(named) ? { id: named } : { name: named },
        ),
      });
      // Not the new id, where the same call had made it before.
      request.audit?.about(instanceId);
      if (body.start) {
        try {
          const start = startRequest(
            instanceId,
            body.name,
            waitMs(request, context.waitLimitMs),
            key === undefined ? undefined : { value: key, call: 'create' },
          );
          const { operationId } = (await operations.repeated(start)) ?? (await operations.run(start));
          location(reply, operationId);
        } catch (error) {
          // The instance is there, stopped: its creation has succeeded, whatever became of its start.
          if (!(error instanceof OperationFailed) && !(error instanceof Refusal))
            log.warn({ err: error, instance_id: instanceId }, 'a new instance was not started');
        }
      }
      return reply.status(201).send(await showInstance(db, instanceId));
    },
  );

  const instanceRoute = { tags: ['instances'], params: instanceParams, querystring: projectQuery };

  app.get(
    '/v1/instances/:instance',
    { schema: { ...instanceRoute, response: { 200: instanceView, ...errors } } },
    async (request) => viewInstance(await subjectInstance(db, request)),
  );

  app.put(
    '/v1/instances/:instance',
    { schema: { ...instanceRoute, body: instanceUpdate, response: { 200: instanceView, ...errors } } },
    async (request) => {
      const { instance } = await subjectInstance(db, request);
      const { name, description, ncpus, memory, auto_restart_policy, auto_restart_cooldown_seconds, restart_priority } =
        request.body;
      await updateInstanceRecord(changing(request, db), instance.id, {
        ...(name === undefined ? {} : { name }),
        ...(description === undefined ? {} : { description }),
        ...(ncpus === undefined ? {} : { ncpus }),
        ...(memory === undefined ? {} : { memoryBytes: memory }),
        ...(auto_restart_policy === undefined ? {} : { autoRestartPolicy: auto_restart_policy }),
        ...(auto_restart_cooldown_seconds === undefined
          ? {}
          : { autoRestartCooldownSeconds: auto_restart_cooldown_seconds }),
        ...(restart_priority === undefined ? {} : { restartPriority: restart_priority }),
      });
      return showInstance(db, instance.id);
    },
  );

  app.delete(
    '/v1/instances/:instance',
    { schema: { ...instanceRoute, response: { 204: z.null(), ...errors } } },
    async (request, reply) => {
      const { instance } = await subjectInstance(db, request);
      await deleteInstance(changing(request, db), instance.id);
      // It is deleted: should the signal be lost, the scan finds what it left.
      await signalIfNeeded(context, instance.id).catch((error: unknown) =>
        log.warn({ err: error }, 'a deleted instance waits for the scan'),
      );
      return reply.status(204).send(null);
    },
  );

  function startRequest(
    instanceId: string,
    name: string,
    wait: number,
    key: OperationRequest['key'] = undefined,
  ): OperationRequest {
    return {
      key,
      kind: 'start',
      instanceId,
      workflowId: workflowIds.start(instanceId),
      workflowType: 'instanceStart',
      args: [{ instanceId, reason: 'user', ...registerTimeout }],
      summary: `start instance "${name}"`,
      waitMs: wait,
    };
  }

  app.post(
    '/v1/instances/:instance/start',
    { schema: { ...instanceRoute, response: accepted } },
    async (request, reply) => {
      const { instance, externalState } = await subjectInstance(db, request);
      const key = idempotencyKey(request);
      const start: OperationRequest = {
        ...startRequest(
          instance.id,
          instance.name,
          waitMs(request, context.waitLimitMs),
          key === undefined ? undefined : { value: key, call: 'start' },
        ),
        audit: request.audit,
      };
      const repeated = await operations.repeated(start);
      if (repeated !== null) {
        location(reply, repeated.operationId);
        return reply.status(202).send(await showInstance(db, instance.id, request.audit));
      }
      const legal = verdict(externalState, 'start');
      if (legal === 'conflict' || legal === 'invalid')
        throw Refusal.conflict(refusalMessage('start', instance.name, externalState));
      if (legal === 'act') {
        const { operationId } = await operations.run(start);
        location(reply, operationId);
      } else {
        const record = await recordRunningIntent(db, instance.id);
        const now = verdict(record.externalState, 'start');
        if (now === 'conflict' || now === 'invalid')
          throw Refusal.conflict(refusalMessage('start', instance.name, record.externalState));
        const joined =
          now === 'act'
            ? await operations.run(start)
            : record.externalState === 'starting'
              ? await operations.joinOpen(start)
              : null;
        if (joined !== null) location(reply, joined.operationId);
      }
      return reply.status(202).send(await showInstance(db, instance.id, request.audit));
    },
  );

  app.post(
    '/v1/instances/:instance/stop',
    { schema: { ...instanceRoute, response: accepted } },
    async (request, reply) => {
      const { instance } = await subjectInstance(db, request);
      const { carry } = await recordStop(changing(request, db), instance.id);
      if (carry) await carryStop(instance.id);
      return reply.status(202).send(await showInstance(db, instance.id));
    },
  );

  app.post(
    '/v1/instances/:instance/force-stop',
    { schema: { ...instanceRoute, body: instanceForceStop.nullish(), response: accepted } },
    async (request, reply) => {
      const { instance, externalState } = await subjectInstance(db, request);
      if (verdict(externalState, 'stop') === 'conflict')
        throw Refusal.conflict(refusalMessage('stop', instance.name, externalState));
      for (let round = 1; round <= FORCE_STOP_ROUNDS; round++) {
        const living = (await readLinkedVmms(db, instance.id)).filter((vmm) => !isGoneVmmState(vmm.state));
        const sides = await Promise.all(living.map(lookAt));
        const judged = judgeForceStop(instance.name, sides, request.body?.sled_powered_off ?? false);
        if (judged.verdict === 'refuse') throw Refusal.conflict(judged.message);
        const recorded = await recordForceStop(changing(request, db), instance.id, {
          seen: living.map((vmm) => vmm.vmmId),
          vouched: judged.vouched,
        });
        if (recorded === null) continue;
        // Both are found by the scan, should this process end here.
        await signalIfNeeded(context, instance.id).catch((error: unknown) =>
          log.warn({ err: error }, 'an update waits for the scan'),
        );
        if (recorded.carry) await carryStop(instance.id);
        return reply.status(202).send(await showInstance(db, instance.id));
      }
      throw Refusal.conflict(`the VMs of instance "${instance.name}" changed meanwhile: look at it, then try again`);
    },
  );

  async function carryStop(instanceId: string): Promise<void> {
    // The intent is what counts; should this be lost, the scan finds a stop that nobody carries.
    await workflows
      .carryStop(instanceId)
      .catch((error: unknown) => log.warn({ err: error }, 'a stop waits for the scan'));
  }

  /** Asks a VMM's sled for a sign of life. */
  async function lookAt(vmm: VmmPlace): Promise<ForceStopSide> {
    const side = { vmmId: vmm.vmmId, sledName: vmm.sledName ?? '' };
    if (vmm.givenUp || vmm.sledAddress === null) return { ...side, standing: 'given-up' };
    const answers = await sleds.answers({ name: side.sledName, address: vmm.sledAddress }, PROBE_MS);
    return { ...side, standing: answers ? 'answers' : 'silent' };
  }

  app.post(
    '/v1/instances/:instance/reboot',
    { schema: { ...instanceRoute, response: accepted } },
    async (request, reply) => {
      const { instance, active, externalState } = await subjectInstance(db, request);
      const legal = verdict(externalState, 'reboot');
      if (legal === 'conflict') throw Refusal.conflict(refusalMessage('reboot', instance.name, externalState));
      if (legal === 'invalid') throw Refusal.invalid(refusalMessage('reboot', instance.name, externalState));
      if (legal === 'act' && active !== null) await rebootVmm(instance.name, active.id, active.sledId ?? '');
      return reply.status(202).send(await showInstance(db, instance.id));
    },
  );

  async function rebootVmm(name: string, vmmId: string, sledId: string): Promise<void> {
    const [host] = await db.select().from(sled).where(eq(sled.id, sledId));
    if (host === undefined) throw new Error(`sled ${sledId} is not there`);
    try {
      const { updated_runtime } = await sleds.setState(host, vmmId, { type: 'reboot' }, REBOOT_CALL_MS);
      if (updated_runtime === null) return;
      const applied = await applyReport(db, vmmId, updated_runtime);
      if (applied !== null) await signalIfNeeded(context, applied.instanceId);
    } catch (error) {
      if (!(error instanceof SledError)) throw error;
      if (error.kind === 'gone') {
        const instanceId = await failVmm(db, vmmId, error.message);
        if (instanceId !== null) await workflows.signalUpdate(instanceId);
        throw Refusal.conflict(
          `instance "${name}" can't be rebooted: its VM is lost (${error.message}); start it again when it shows Failed or Stopped`,
        );
      }
      const doubt = error.kind === 'refused' ? 'it was not rebooted' : 'it may have been rebooted';
      throw Refusal.unavailable(`instance "${name}": ${doubt}: ${error.message}; look at it, then try again`);
    }
  }

  app.post(
    '/v1/instances/:instance/migrate',
    { schema: { ...instanceRoute, body: instanceMigrate, response: accepted } },
    async (request, reply) => {
      const record = await subjectInstance(db, request);
      const { instance } = record;
      const destinationSledId = request.body.dst_sled_id.toLowerCase();
      const key = idempotencyKey(request);
      const migrate: OperationRequest = {
        key: key === undefined ? undefined : { value: key, call: 'migrate' },
        kind: 'migrate',
        instanceId: instance.id,
        workflowId: workflowIds.migrate(instance.id),
        workflowType: 'instanceMigrate',
        args: [{ instanceId: instance.id, destinationSledId, ...registerTimeout }],
        summary: `migrate instance "${instance.name}" to sled ${destinationSledId}`,
        waitMs: waitMs(request, context.waitLimitMs),
        audit: request.audit,
        mayJoin: (input) => (input as { destinationSledId?: string } | null)?.destinationSledId === destinationSledId,
      };
      const repeated = await operations.repeated(migrate);
      const check = repeated === null ? await checkMigration(db, record, destinationSledId) : null;
      const answer =
        repeated ?? (check === 'legal' ? await operations.run(migrate) : await operations.joinOpen(migrate));
      if (answer !== null) location(reply, answer.operationId);
      return reply.status(202).send(await showInstance(db, instance.id, request.audit));
    },
  );
}
