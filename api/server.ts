/** The API: operators and their programs, and the reports of sled agents. */
import { randomUUID } from 'node:crypto';
import swagger from '@fastify/swagger';
import { Client, Connection } from '@temporalio/client';
import { and, asc, eq, gt, isNull, ne, sql } from 'drizzle-orm';
import { type FastifyReply, type FastifyRequest, fastify } from 'fastify';
import {
  hasZodFastifySchemaValidationErrors,
  jsonSchemaTransform,
  serializerCompiler,
  validatorCompiler,
  type ZodTypeProvider,
} from 'fastify-type-provider-zod';
import type { Logger } from 'pino';
import { z } from 'zod';
import { SledClient, SledError } from '../activities/sled-client.ts';
import { WorkflowStarter } from '../activities/workflow-starter.ts';
import { openDatabase } from '../db/connect.ts';
import { databaseError } from '../db/errors.ts';
import { findInstanceByName, type InstanceRecord, listInstances, readInstance } from '../db/queries/read-instance.ts';
import { readSnapshot } from '../db/queries/read-snapshot.ts';
import { project, sled } from '../db/schema.ts';
import { applyReport } from '../db/transactions/apply-report.ts';
import { checkMigration } from '../db/transactions/claim-migration.ts';
import { failVmm } from '../db/transactions/fail-vmm.ts';
import {
  addSled,
  createInstance,
  createProject,
  deleteProject,
  expungeSled,
  requireProject,
  setQuota,
  setSledPolicy,
  updateInstanceRecord,
  updateProject,
} from '../db/transactions/manage-inventory.ts';
import { deleteInstance, recordRunningIntent, recordStop } from '../db/transactions/record-intent.ts';
import { refusalMessage, verdict } from '../model/legality.ts';
import { Refusal } from '../model/refusal.ts';
import { needsUpdate } from '../model/update-decision.ts';
import { workflowIds } from '../model/workflow-names.ts';
import {
  DEFAULT_PAGE_LIMIT,
  errorResponse,
  instanceCreate,
  instanceMigrate,
  instanceUpdate,
  instanceView,
  isUuid,
  nameOrId,
  operationView,
  pageParams,
  projectCreate,
  projectUpdate,
  projectView,
  provisionPolicyParams,
  provisionPolicyResponse,
  quotaUpdate,
  quotaView,
  resultsPage,
  serialConsoleParams,
  shownState,
  sledAdd,
  sledView,
} from '../wire/operator-api.ts';
import { serialConsoleData, sledVmmState } from '../wire/sled-protocol.ts';
import type { TemporalSettings } from '../worker/temporal-connection.ts';
import { OperationFailed, type OperationRequest, Operations } from './operations.ts';
import { readPage, writePage } from './paging.ts';
import { viewInstance, viewOperation, viewProject, viewQuota, viewSled } from './views.ts';

export interface ApiOptions {
  readonly databaseUrl: string;
  readonly temporal: TemporalSettings;
  readonly host: string;
  /** 0 chooses a free one. */
  readonly port: number;
  /** Where the Temporal Web UI is, for links. */
  readonly temporalUiUrl?: string | null;
  readonly log: Logger;
  /** How long a call waits for its saga's word, in milliseconds; default 60000. A client may ask for less. */
  readonly waitMs?: number;
  /** How long registering a VMM may take, in milliseconds; default 15000. */
  readonly registerTimeoutMs?: number;
}

export interface RunningApi {
  readonly url: string;
  /** Takes no new calls, answers those that wait, and closes every connection. */
  stop(): Promise<void>;
}

const DEFAULT_WAIT_MS = 60_000;
const REBOOT_CALL_MS = 5_000;
const CONSOLE_CALL_MS = 5_000;
const errors = { '4xx': errorResponse, '5xx': errorResponse };

/** Starts the API. Throws when Temporal can't be reached or the port is taken. */
export async function startApi(options: ApiOptions): Promise<RunningApi> {
  const database = openDatabase(options.databaseUrl, { maxConnections: 20, applicationName: 'mooring-api' });
  const { db } = database;
  const connection = await Connection.connect(options.temporal.connection);
  const client = new Client({ connection, namespace: options.temporal.namespace });
  const workflows = new WorkflowStarter(client);
  const operations = new Operations(client, db);
  const sleds = new SledClient();
  const registerTimeout =
    options.registerTimeoutMs === undefined ? {} : { registerTimeoutMs: options.registerTimeoutMs };

  const app = fastify({
    genReqId: () => randomUUID(),
    bodyLimit: 1024 * 1024,
    requestTimeout: 0,
    forceCloseConnections: 'idle',
  }).withTypeProvider<ZodTypeProvider>();
  app.setValidatorCompiler(validatorCompiler);
  app.setSerializerCompiler(serializerCompiler);
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: { title: 'Mooring', version: '0.1.0', description: 'Keeps virtual machines tied to physical servers.' },
    },
    transform: jsonSchemaTransform,
  });

  app.addHook('onSend', async (request, reply) => {
    reply.header('x-request-id', request.id);
  });
  app.setNotFoundHandler((request, reply) => {
    void reply.status(404).send({
      error_code: 'NotFound',
      message: `no such endpoint: ${request.method} ${request.url}`,
      request_id: request.id,
    });
  });
  app.setErrorHandler((error, request, reply) => {
    const { status, code, message } = describeError(error);
    if (status >= 500 && status !== 503 && status !== 507)
      options.log.error({ err: error, request_id: request.id }, 'a request failed');
    void reply.status(status).send({ error_code: code, message, request_id: request.id });
  });
  // A client may send an empty body with a content type of JSON, as the Oxide clients do.
  app.addContentTypeParser('application/json', { parseAs: 'string' }, (_, body, done) => {
    if (body === '') return done(null, undefined);
    try {
      done(null, JSON.parse(String(body)));
    } catch {
      done(Object.assign(new Error('the body is not valid JSON'), { statusCode: 400 }), undefined);
    }
  });

  // --- Finding things ---

  const projectQuery = z.object({ project: nameOrId.optional() });

  async function findInstance(instance: string, projectNameOrId: string | undefined): Promise<InstanceRecord> {
    if (isUuid(instance)) {
      const record = await readInstance(db, instance);
      if (record === null || record.instance.timeDeleted !== null) throw Refusal.notFound('instance', instance);
      return record;
    }
    if (projectNameOrId === undefined)
      throw Refusal.invalid('project: needed to find an instance by name; give ?project=, or the id of the instance');
    const owner = await requireProject(db, projectNameOrId, isUuid(projectNameOrId));
    const record = await findInstanceByName(db, owner.id, instance);
    if (record === null) throw Refusal.notFound('instance', instance);
    return record;
  }

  async function view(instanceId: string) {
    const record = await readInstance(db, instanceId);
    if (record === null) throw Refusal.notFound('instance', instanceId);
    return viewInstance(record);
  }

  async function signalIfNeeded(instanceId: string): Promise<void> {
    const snapshot = await readSnapshot(db, instanceId);
    if (snapshot !== null && needsUpdate(snapshot)) await workflows.signalUpdate(instanceId);
  }

  /** How long this call may wait, in milliseconds: `Prefer: wait=SECONDS` (RFC 7240) asks for less than the limit. */
  function waitMs(request: FastifyRequest): number {
    const limit = options.waitMs ?? DEFAULT_WAIT_MS;
    const prefer = [request.headers.prefer ?? []].flat().join(',');
    const asked = /(?:^|[,;\s])wait\s*=\s*"?(\d+)"?/i.exec(prefer)?.[1];
    return asked === undefined ? limit : Math.min(limit, Number(asked) * 1000);
  }

  function location(reply: FastifyReply, operationId: string): void {
    reply.header('location', `/v1/operations/${operationId}`);
  }

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
          state: shownState.optional(),
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
        shown: state,
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
      const instanceId = await createInstance(db, {
        projectId,
        name: body.name,
        description: body.description,
        hostname: body.hostname,
        ncpus: body.ncpus,
        memoryBytes: body.memory,
        autoRestartPolicy: body.auto_restart_policy ?? null,
      });
      if (body.start) {
        try {
          const { operationId } = await operations.run(startRequest(instanceId, body.name, waitMs(request)));
          location(reply, operationId);
        } catch (error) {
          // The instance is there, stopped: its creation has succeeded.
          if (!(error instanceof OperationFailed) && !(error instanceof Refusal)) throw error;
        }
      }
      return reply.status(201).send(await view(instanceId));
    },
  );

  const instanceRoute = { tags: ['instances'], params: instanceParams, querystring: projectQuery };

  app.get(
    '/v1/instances/:instance',
    { schema: { ...instanceRoute, response: { 200: instanceView, ...errors } } },
    async (request) => viewInstance(await findInstance(request.params.instance, request.query.project)),
  );

  app.put(
    '/v1/instances/:instance',
    { schema: { ...instanceRoute, body: instanceUpdate, response: { 200: instanceView, ...errors } } },
    async (request) => {
      const { instance } = await findInstance(request.params.instance, request.query.project);
      const { name, description, ncpus, memory, auto_restart_policy } = request.body;
      await updateInstanceRecord(db, instance.id, {
        ...(name === undefined ? {} : { name }),
        ...(description === undefined ? {} : { description }),
        ...(ncpus === undefined ? {} : { ncpus }),
        ...(memory === undefined ? {} : { memoryBytes: memory }),
        ...(auto_restart_policy === undefined ? {} : { autoRestartPolicy: auto_restart_policy }),
      });
      return view(instance.id);
    },
  );

  app.delete(
    '/v1/instances/:instance',
    { schema: { ...instanceRoute, response: { 204: z.null(), ...errors } } },
    async (request, reply) => {
      const { instance } = await findInstance(request.params.instance, request.query.project);
      await deleteInstance(db, instance.id);
      await signalIfNeeded(instance.id);
      return reply.status(204).send(null);
    },
  );

  function startRequest(instanceId: string, name: string, wait: number): OperationRequest {
    return {
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
      const { instance, shown } = await findInstance(request.params.instance, request.query.project);
      const start = startRequest(instance.id, instance.name, waitMs(request));
      const legal = verdict(shown, 'start');
      if (legal === 'conflict' || legal === 'invalid')
        throw Refusal.conflict(refusalMessage('start', instance.name, shown));
      if (legal === 'act') {
        const { operationId } = await operations.run(start);
        location(reply, operationId);
      } else {
        const record = await recordRunningIntent(db, instance.id);
        const now = verdict(record.shown, 'start');
        if (now === 'conflict' || now === 'invalid')
          throw Refusal.conflict(refusalMessage('start', instance.name, record.shown));
        const joined =
          now === 'act'
            ? await operations.run(start)
            : record.shown === 'starting'
              ? await operations.joinOpen(start)
              : null;
        if (joined !== null) location(reply, joined.operationId);
      }
      return reply.status(202).send(await view(instance.id));
    },
  );

  app.post(
    '/v1/instances/:instance/stop',
    { schema: { ...instanceRoute, response: accepted } },
    async (request, reply) => {
      const { instance } = await findInstance(request.params.instance, request.query.project);
      const { carry } = await recordStop(db, instance.id);
      // The intent is what counts; should this be lost, the scan finds a stop that nobody carries.
      if (carry)
        await workflows
          .carryStop(instance.id)
          .catch((error: unknown) => options.log.warn({ err: error }, 'a stop waits for the scan'));
      return reply.status(202).send(await view(instance.id));
    },
  );

  app.post(
    '/v1/instances/:instance/reboot',
    { schema: { ...instanceRoute, response: accepted } },
    async (request, reply) => {
      const { instance, active, shown } = await findInstance(request.params.instance, request.query.project);
      const legal = verdict(shown, 'reboot');
      if (legal === 'conflict') throw Refusal.conflict(refusalMessage('reboot', instance.name, shown));
      if (legal === 'invalid') throw Refusal.invalid(refusalMessage('reboot', instance.name, shown));
      if (legal === 'act' && active !== null) await rebootVmm(instance.name, active.id, active.sledId ?? '');
      return reply.status(202).send(await view(instance.id));
    },
  );

  async function rebootVmm(name: string, vmmId: string, sledId: string): Promise<void> {
    const [host] = await db.select().from(sled).where(eq(sled.id, sledId));
    if (host === undefined) throw new Error(`sled ${sledId} is not there`);
    try {
      const { updated_runtime } = await sleds.setState(host, vmmId, { type: 'reboot' }, REBOOT_CALL_MS);
      if (updated_runtime === null) return;
      const applied = await applyReport(db, vmmId, updated_runtime);
      if (applied !== null) await signalIfNeeded(applied.instanceId);
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

  app.get(
    '/v1/instances/:instance/serial-console',
    {
      schema: {
        tags: ['instances'],
        params: instanceParams,
        querystring: serialConsoleParams,
        response: { 200: serialConsoleData, ...errors },
      },
    },
    async (request) => {
      const { project: owner, from_start, most_recent, max_bytes } = request.query;
      const { instance, active } = await findInstance(request.params.instance, owner);
      const [host] = active?.sledId == null ? [] : await db.select().from(sled).where(eq(sled.id, active.sledId));
      if (active === null || host === undefined)
        throw Refusal.conflict(`instance "${instance.name}" has no VM: start it, then look at its console`);
      const fromOffset = most_recent === undefined ? (from_start ?? 0) : -most_recent;
      try {
        return await sleds.readConsole(host, active.id, { fromOffset, maxBytes: max_bytes }, CONSOLE_CALL_MS);
      } catch (error) {
        if (!(error instanceof SledError)) throw error;
        const message = `instance "${instance.name}": its console can't be read: ${error.message}`;
        throw error.kind === 'refused' ? Refusal.conflict(message) : Refusal.unavailable(`${message}; try again`);
      }
    },
  );

  app.post(
    '/v1/instances/:instance/migrate',
    { schema: { ...instanceRoute, body: instanceMigrate, response: accepted } },
    async (request, reply) => {
      const record = await findInstance(request.params.instance, request.query.project);
      const { instance } = record;
      const destinationSledId = request.body.dst_sled_id.toLowerCase();
      const migrate: OperationRequest = {
        kind: 'migrate',
        instanceId: instance.id,
        workflowId: workflowIds.migrate(instance.id),
        workflowType: 'instanceMigrate',
        args: [{ instanceId: instance.id, destinationSledId, ...registerTimeout }],
        summary: `migrate instance "${instance.name}" to sled ${destinationSledId}`,
        waitMs: waitMs(request),
        mayJoin: (input) => (input as { destinationSledId?: string } | null)?.destinationSledId === destinationSledId,
      };
      const check = await checkMigration(db, record, destinationSledId);
      const answer = check === 'legal' ? await operations.run(migrate) : await operations.joinOpen(migrate);
      if (answer !== null) location(reply, answer.operationId);
      return reply.status(202).send(await view(instance.id));
    },
  );

  app.get(
    '/v1/operations/:operation_id',
    {
      schema: {
        tags: ['operations'],
        params: z.object({ operation_id: z.guid() }),
        response: { 200: operationView, ...errors },
      },
    },
    async (request) => {
      const row = await operations.read(request.params.operation_id);
      if (row === null) throw Refusal.notFound('operation', request.params.operation_id);
      const { temporalUiUrl } = options;
      const path = `/namespaces/${options.temporal.namespace}/workflows/${encodeURIComponent(row.workflowId)}/${row.id}`;
      return viewOperation(row, temporalUiUrl ? `${temporalUiUrl}${path}` : null);
    },
  );

  // --- Projects ---

  const projectParams = z.object({ project: nameOrId });
  const findProject = (named: string) => requireProject(db, named, isUuid(named));

  app.get(
    '/v1/projects',
    { schema: { tags: ['projects'], querystring: pageParams, response: { 200: resultsPage(projectView), ...errors } } },
    async (request) => {
      const limit = request.query.limit ?? DEFAULT_PAGE_LIMIT;
      const page = readPage(request.query.page_token, 'name_ascending');
      const rows = await db
        .select()
        .from(project)
        .where(and(isNull(project.timeDeleted), page.after === null ? undefined : gt(project.name, page.after)))
        .orderBy(asc(project.name))
        .limit(limit);
      const last = rows.at(-1);
      return {
        items: rows.map(viewProject),
        next_page: rows.length < limit || last === undefined ? null : writePage('name_ascending', last.name),
      };
    },
  );
  app.post(
    '/v1/projects',
    { schema: { tags: ['projects'], body: projectCreate, response: { 201: projectView, ...errors } } },
    async (request, reply) => reply.status(201).send(viewProject(await createProject(db, request.body))),
  );
  app.get(
    '/v1/projects/:project',
    { schema: { tags: ['projects'], params: projectParams, response: { 200: projectView, ...errors } } },
    async (request) => viewProject(await findProject(request.params.project)),
  );
  app.put(
    '/v1/projects/:project',
    {
      schema: {
        tags: ['projects'],
        params: projectParams,
        body: projectUpdate,
        response: { 200: projectView, ...errors },
      },
    },
    async (request) => {
      const { id } = await findProject(request.params.project);
      const { name, description } = request.body;
      return viewProject(
        await updateProject(db, id, {
          ...(name == null ? {} : { name }),
          ...(description == null ? {} : { description }),
        }),
      );
    },
  );
  app.delete(
    '/v1/projects/:project',
    { schema: { tags: ['projects'], params: projectParams, response: { 204: z.null(), ...errors } } },
    async (request, reply) => {
      await deleteProject(db, (await findProject(request.params.project)).id);
      return reply.status(204).send(null);
    },
  );
  const quotaRoute = { tags: ['system'], params: projectParams };
  app.get(
    '/v1/system/projects/:project/quota',
    { schema: { ...quotaRoute, response: { 200: quotaView, ...errors } } },
    async (request) => viewQuota(await findProject(request.params.project)),
  );
  app.put(
    '/v1/system/projects/:project/quota',
    { schema: { ...quotaRoute, body: quotaUpdate, response: { 200: quotaView, ...errors } } },
    async (request) => {
      const { id } = await findProject(request.params.project);
      return viewQuota(await setQuota(db, id, { cpus: request.body.cpus, memoryBytes: request.body.memory }));
    },
  );

  // --- Sleds ---

  const sledParams = z.object({ sled_id: z.guid() });
  const sledRoute = { tags: ['system'], params: sledParams };
  // Named in full: in a query of one table drizzle writes bare column names, which a subquery would take for its own.
  const vmmCount = sql<number>`(SELECT count(*)::int FROM vmm placed WHERE placed.sled_id = sled.id AND placed.time_deleted IS NULL
    AND placed.state NOT IN ('destroyed', 'failed', 'saga_unwound'))`;

  async function requireSled(sledId: string) {
    const [row] = await db.select({ sled, vmmCount }).from(sled).where(eq(sled.id, sledId));
    if (row === undefined) throw Refusal.notFound('sled', sledId);
    return viewSled(row.sled, row.vmmCount);
  }

  app.get(
    '/v1/system/hardware/sleds',
    { schema: { tags: ['system'], querystring: pageParams, response: { 200: resultsPage(sledView), ...errors } } },
    async (request) => {
      const limit = request.query.limit ?? DEFAULT_PAGE_LIMIT;
      const page = readPage(request.query.page_token, 'id_ascending');
      const rows = await db
        .select({ sled, vmmCount })
        .from(sled)
        .where(and(ne(sled.policy, 'expunged'), page.after === null ? undefined : gt(sled.id, page.after)))
        .orderBy(asc(sled.id))
        .limit(limit);
      const last = rows.at(-1);
      return {
        items: rows.map((row) => viewSled(row.sled, row.vmmCount)),
        next_page: rows.length < limit || last === undefined ? null : writePage('id_ascending', last.sled.id),
      };
    },
  );
  app.post(
    '/v1/system/hardware/sleds',
    { schema: { tags: ['system'], body: sledAdd, response: { 201: sledView, ...errors } } },
    async (request, reply) => {
      const { memory, ...rest } = request.body;
      return reply.status(201).send(viewSled(await addSled(db, { ...rest, memoryBytes: memory }), 0));
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
        db,
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
    '/v1/system/hardware/sleds/:sled_id/expunge',
    { schema: { ...sledRoute, response: { 200: sledView, ...errors } } },
    async (request) => {
      for (const instanceId of await expungeSled(db, request.params.sled_id)) await workflows.signalUpdate(instanceId);
      return requireSled(request.params.sled_id);
    },
  );

  // --- Sled agents ---

  app.put(
    '/vmms/:vmm_id',
    {
      schema: {
        tags: ['sled agents'],
        params: z.object({ vmm_id: z.guid() }),
        body: sledVmmState,
        response: { 204: z.null(), ...errors },
      },
    },
    async (request, reply) => {
      const { vmm_id: vmmId } = request.params;
      const applied = await applyReport(db, vmmId, request.body);
      if (applied === null) throw Refusal.notFound('VMM', vmmId);
      // Judged by what is stored, not by what this report changed; only a signal that was taken may be answered with 204.
      if (applied.verdict === 'applied') await signalIfNeeded(applied.instanceId);
      return reply.status(204).send(null);
    },
  );

  app.get('/openapi.json', { schema: { hide: true } }, async () => app.swagger());

  await app.listen({ host: options.host, port: options.port });
  const bound = app.server.address();
  const port = typeof bound === 'object' && bound !== null ? bound.port : options.port;
  const host = options.host.includes(':') ? `[${options.host}]` : options.host;
  return {
    url: `http://${host}:${port}`,
    async stop() {
      app.server.closeIdleConnections();
      const closing = app.close();
      const cut = setTimeout(() => app.server.closeAllConnections(), 5_000);
      await closing;
      clearTimeout(cut);
      await Promise.allSettled([connection.close(), database.close(), sleds.close()]);
    },
  };
}

/** The one place that turns an error into a status and a message. */
function describeError(error: unknown): { status: number; code: string; message: string } {
  if (error instanceof Refusal) return { status: error.status, code: error.code, message: error.message };
  if (error instanceof OperationFailed) {
    return { status: error.body.status, code: error.body.error_code, message: error.body.message };
  }
  if (hasZodFastifySchemaValidationErrors(error)) {
    const details = error.validation.map(
      (issue) => `${issue.instancePath.slice(1).replaceAll('/', '.') || error.validationContext}: ${issue.message}`,
    );
    return { status: 400, code: 'InvalidRequest', message: details.join('; ') };
  }
  const { statusCode } = error as { statusCode?: unknown };
  if (typeof statusCode === 'number' && statusCode >= 400 && statusCode < 500) {
    return {
      status: statusCode,
      code: 'InvalidRequest',
      message: error instanceof Error ? error.message : String(error),
    };
  }
  const cause = databaseError(error);
  // 53: out of resources; 57: shutting down or starting; 08: the connection broke.
  if ((cause?.code !== undefined && /^(53|57|08)/.test(cause.code)) || isConnectionError(error)) {
    return {
      status: 503,
      code: 'ServiceUnavailable',
      message: 'the database or the Temporal server does not answer at the moment: try again',
    };
  }
  return { status: 500, code: 'Internal', message: 'an internal error; the request_id finds it in the log' };
}

function isConnectionError(error: unknown): boolean {
  for (let cause: unknown = error; cause instanceof Error; cause = cause.cause) {
    const { code } = cause as { code?: unknown };
    if (typeof code === 'string' && ['ECONNREFUSED', 'ECONNRESET', 'EPIPE', 'ETIMEDOUT'].includes(code)) return true;
    // gRPC: UNAVAILABLE, DEADLINE_EXCEEDED.
    if (code === 14 || code === 4) return true;
    if (/timeout exceeded when trying to connect|Connection terminated/.test(cause.message)) return true;
  }
  return false;
}
