import { SledError } from '../../activities/sled-client.ts';
import { readSled } from '../../db/queries/read-sled.ts';
import { readSledFacts } from '../../db/queries/read-sled-facts.ts';
import { readLinkedVmms, type VmmPlace } from '../../db/queries/read-vmm-place.ts';
import { applyReport } from '../../db/transactions/apply-report.ts';
import { failVmm } from '../../db/transactions/fail-vmm.ts';
import { recordForceStop } from '../../db/transactions/force-stop.ts';
import { recordStop } from '../../db/transactions/record-stop.ts';
import { type ForceStopSide, judgeForceStop, standingOf } from '../../model/force-stop.ts';
import { requireLegal } from '../../model/legality.ts';
import { Refusal } from '../../model/refusal.ts';
import { isGoneVmmState } from '../../model/states.ts';
import { signalAfterReport, signalIfNeeded } from '../../temporal/signal-update.ts';
import { instanceForceStop, instanceView } from '../../wire/operator-api/instances.ts';
import { changing } from '../audit.ts';
import type { ApiApp, ApiContext } from '../context.ts';
import { errors } from '../errors.ts';
import { instanceRoute, showInstance, subjectInstance } from '../find-instance.ts';
import { probeSled } from '../probe-sled.ts';

const REBOOT_CALL_MS = 5_000;
/** How often a stop by force looks again when the instance's VMMs change under it. */
const FORCE_STOP_ROUNDS = 3;

/** Adds the endpoints that stop and reboot an instance. */
export function addInstancePowerRoutes(app: ApiApp, context: ApiContext): void {
  const { db, workflows, log } = context;
  const accepted = { 202: instanceView, ...errors };

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
      requireLegal('stop', instance.name, externalState);
      for (let round = 1; round <= FORCE_STOP_ROUNDS; round++) {
        const living = (await readLinkedVmms(db, instance.id)).filter((vmm) => !isGoneVmmState(vmm.state));
        const sides = await Promise.all(living.map((vmm) => lookAt(context, vmm)));
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

  app.post(
    '/v1/instances/:instance/reboot',
    { schema: { ...instanceRoute, response: accepted } },
    async (request, reply) => {
      const { instance, active, externalState } = await subjectInstance(db, request);
      const legal = requireLegal('reboot', instance.name, externalState);
      if (legal === 'act' && active !== null) await rebootVmm(context, instance.name, active.id, active.sledId ?? '');
      return reply.status(202).send(await showInstance(db, instance.id));
    },
  );
}

/** Asks a VMM's sled for a sign of life. */
async function lookAt({ db, sleds }: ApiContext, vmm: VmmPlace): Promise<ForceStopSide> {
  const side = { vmmId: vmm.vmmId, sledName: vmm.sledName ?? '' };
  const sled = vmm.givenUp || vmm.sledId === null ? null : await readSled(db, vmm.sledId);
  if (sled === null) return { ...side, standing: 'given-up' };
  const facts = { answers: await probeSled(sleds, sled), ...(await readSledFacts(db, sled.id)) };
  return { ...side, standing: standingOf(facts) };
}

/** Has a sled reboot a VMM, and applies what it answers. Throws a {@link Refusal} when the VMM is lost or the sled can't. */
async function rebootVmm(
  { db, workflows, sleds }: ApiContext,
  name: string,
  vmmId: string,
  sledId: string,
): Promise<void> {
  const host = await readSled(db, sledId);
  if (host === null) throw new Error(`sled ${sledId} is not there`);
  try {
    const { updated_runtime } = await sleds.setState(host, vmmId, { type: 'reboot' }, REBOOT_CALL_MS);
    if (updated_runtime === null) return;
    const applied = await applyReport(db, vmmId, updated_runtime);
    if (applied !== null) await signalAfterReport({ db, workflows }, applied);
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
