/**
 * The steps of a start as plain functions: the same statements and the same calls as Mooring's activities, for the floor
 * and for the peers whose steps are functions (DBOS, Restate).
 */
import { SledClient, SledError } from '../../activities/sled-client.ts';
import { type OpenDatabase, openDatabase } from '../../db/connect.ts';
import { applyReport } from '../../db/transactions/apply-report.ts';
import { beginUnwind } from '../../db/transactions/begin-unwind.ts';
import { type ClaimedVmm, claimStart } from '../../db/transactions/claim-start.ts';
import { finishUnwind } from '../../db/transactions/finish-unwind.ts';

/** One start and the VMM that it makes. */
export interface StartAttempt {
  readonly instanceId: string;
  readonly vmmId: string;
  readonly operationId: string;
  readonly workflowId: string;
}

/** How a step failed for good: its saga unwinds. Anything else may be tried again. */
export function isFinal(error: unknown): boolean {
  return error instanceof SledError && error.kind !== 'unavailable';
}

const SLED_CALL_MS = 4_000;

/** The steps over one database; `maxConnections` as Mooring's worker has. */
export function createSteps(databaseUrl: string): {
  database: OpenDatabase;
  steps: StartSteps;
  close(): Promise<void>;
} {
  const database = openDatabase(databaseUrl, { maxConnections: 20, applicationName: 'bench' });
  const sleds = new SledClient();
  const { db } = database;
  const steps: StartSteps = {
    async claim(attempt) {
      const claim = await claimStart(db, { ...attempt, reason: 'user' });
      if (claim === null) throw new Error(`${attempt.instanceId} is started already`);
      return claim;
    },
    async register(attempt, claim) {
      const sled = { name: claim.sledName, address: claim.sledAddress, keptAgentId: null };
      const request = {
        instance_id: attempt.instanceId,
        vmm_runtime: {
          state: 'starting' as const,
          gen: claim.registerGeneration,
          time_updated: new Date().toISOString(),
        },
        vmm_spec: { name: claim.instanceName, ncpus: claim.ncpus, memory_bytes: claim.memoryBytes },
        vmm_addr: claim.vmmAddress,
      };
      const state = await sleds.register(sled, claim.vmmId, request, SLED_CALL_MS);
      await applyReport(db, claim.vmmId, state, { markCommanded: true });
    },
    async run(attempt, claim) {
      const sled = { name: claim.sledName, address: claim.sledAddress, keptAgentId: null };
      const { updated_runtime } = await sleds.setState(sled, claim.vmmId, { type: 'running' }, SLED_CALL_MS);
      if (updated_runtime !== null) await applyReport(db, claim.vmmId, updated_runtime, { succeed: attempt });
    },
    async beginUnwind(attempt) {
      await beginUnwind(db, { ...attempt, kind: 'start', spareRunning: false });
    },
    async unregister(claim) {
      const sled = { name: claim.sledName, address: claim.sledAddress, keptAgentId: null };
      await sleds.unregister(sled, claim.vmmId, SLED_CALL_MS).catch((error: unknown) => {
        if (!(error instanceof SledError) || error.kind !== 'gone') throw error;
      });
    },
    async finishUnwind(attempt, message) {
      const error = { status: 503, error_code: 'ServiceUnavailable', message };
      await finishUnwind(db, { ...attempt, kind: 'start', confirmed: true, neverCommanded: false, error });
    },
  };
  return {
    database,
    steps,
    async close() {
      await Promise.allSettled([database.close(), sleds.close()]);
    },
  };
}

export interface StartSteps {
  claim(attempt: StartAttempt): Promise<ClaimedVmm>;
  register(attempt: StartAttempt, claim: ClaimedVmm): Promise<void>;
  run(attempt: StartAttempt, claim: ClaimedVmm): Promise<void>;
  beginUnwind(attempt: StartAttempt): Promise<void>;
  unregister(claim: ClaimedVmm): Promise<void>;
  finishUnwind(attempt: StartAttempt, message: string): Promise<void>;
}

/** What every part of the benchmark gets when it starts. */
export interface PartInput {
  readonly databaseUrl: string;
  readonly port: number;
  /** Empty for a part that has no Temporal server. */
  readonly temporalAddress: string;
  readonly temporalNamespace: string;
  /** A directory of its own. */
  readonly dataDir: string;
  /** Nothing is to be asked of the database but for the sagas: they are being counted. */
  readonly loopsOff: boolean;
}

/** What a part says of itself when it is ready. */
export interface PartReady {
  readonly url: string;
  /** A server that the part brought along, measured on its own. */
  readonly serverPid?: number;
}
