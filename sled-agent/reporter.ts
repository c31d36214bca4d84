import { request } from 'undici';
import { isFinalRefusal } from '../model/report-answer.ts';
import { isTerminalVmmState } from '../model/states.ts';
import { processDescriptors } from '../platform/host/descriptor-reserve.ts';
import { withLimit } from '../platform/host/with-limit.ts';
import { inCallSpan } from '../platform/telemetry/tracing.ts';
import { isMarked, nothing, type ReceivedAnswer, readControlPlaneAnswer } from '../wire/answer-mark.ts';
import { AGENT_ID_HEADER, FOREIGN_AGENT, type SledVmmState } from '../wire/sled-protocol.ts';
import { type ControlPlaneConnections, plainConnections, saysExpunged } from './control-plane-connections.ts';
import { ControlPlaneMarks } from './control-plane-marks.ts';
import { guarded } from './guarded.ts';

const CALL_MS = 5_000;
const MAX_PAUSE_MS = 2_000;

/**
 * Reports every change to the control plane, in order for each VMM, until it acknowledges the report (204) or refuses it for
 * good (4xx with its mark). What somebody else answers in its place is no answer. VMMs don't wait for each other.
 */
export class Reporter {
  readonly #url: string;
  readonly #onDelivered: (vmmId: string, report: SledVmmState) => void;
  readonly #onExpunged: (vmmId: string) => void;
  readonly #queues = new Map<string, SledVmmState[]>();
  readonly #connections: ControlPlaneConnections;
  readonly #stopped = new AbortController();
  readonly #onTrouble: (message: string) => void;
  #held = false;
  readonly #marks: ControlPlaneMarks;
  readonly #agentId: () => string | null;
  readonly #heldVmms = new Set<string>();
  /** Why the control plane takes no reports of this agent, as it was said last; `null`: it takes them. */
  #refusal: string | null = null;

  /**
   * `onDelivered` is called once the control plane has dealt with a report, `onExpunged` when it answers that the VMM's sled
   * was expunged. `connections` are the reporter's from then on; in plain HTTP by default. `onTrouble` gets what went wrong and
   * is nobody's answer. `marks` is what is known of the control plane from before, `agentId` which agent reports.
   */
  constructor(
    controlPlaneUrl: string,
    onDelivered: (vmmId: string, report: SledVmmState) => void,
    connections: ControlPlaneConnections | null = null,
    onExpunged: (vmmId: string) => void = () => {},
    onTrouble: (message: string) => void = () => {},
    marks: ControlPlaneMarks = new ControlPlaneMarks(null),
    agentId: () => string | null = () => null,
  ) {
    this.#url = controlPlaneUrl;
    this.#onTrouble = onTrouble;
    this.#connections = connections ?? plainConnections(8);
    this.#onDelivered = onDelivered;
    this.#onExpunged = onExpunged;
    this.#marks = marks;
    this.#agentId = agentId;
  }

  /** Queues a report. */
  report(vmmId: string, report: SledVmmState): void {
    const queue = this.#queues.get(vmmId);
    if (queue !== undefined) {
      queue.push(report);
      return;
    }
    this.#queues.set(vmmId, [report]);
    void this.#deliver(vmmId);
  }

  /** Drops the reports of a VMM that are not delivered yet. */
  forget(vmmId: string): void {
    this.#queues.delete(vmmId);
  }

  /** Test only: holds every report back, or those of one VMM, or lets them go. */
  hold(on: boolean, vmmId?: string): void {
    if (vmmId === undefined) this.#held = on;
    else if (on) this.#heldVmms.add(vmmId);
    else this.#heldVmms.delete(vmmId);
  }

  /** Ends at once; what was not delivered is lost. */
  async stop(): Promise<void> {
    this.#stopped.abort();
    this.#queues.clear();
    await this.#connections.destroy();
  }

  async #deliver(vmmId: string): Promise<void> {
    let pauseMs = 50;
    for (;;) {
      const queue = this.#queues.get(vmmId);
      const next = queue?.[0];
      if (queue === undefined || this.#stopped.signal.aborted) return;
      if (next === undefined) {
        this.#queues.delete(vmmId);
        return;
      }
      if (!this.#held && !this.#heldVmms.has(vmmId) && (await this.#put(vmmId, next))) {
        queue.shift();
        pauseMs = 50;
        if (this.#queues.get(vmmId) === queue) guarded(this.#onTrouble, () => this.#onDelivered(vmmId, next));
        continue;
      }
      await new Promise((resolve) => setTimeout(resolve, pauseMs * (0.5 + Math.random())).unref());
      pauseMs = Math.min(MAX_PAUSE_MS, pauseMs * 2);
    }
  }

  async #put(vmmId: string, report: SledVmmState): Promise<boolean> {
    try {
      const agentId = this.#agentId();
      const shown = agentId === null ? {} : { [AGENT_ID_HEADER]: agentId };
      const send = (headers: Record<string, string>) =>
        withLimit(CALL_MS, this.#stopped.signal, async (signal) => {
          const answer = await request(`${this.#url}/vmms/${vmmId}`, {
            method: 'PUT',
            headers: { ...headers, ...shown, 'content-type': 'application/json' },
            body: JSON.stringify(report),
            dispatcher: this.#connections.dispatcher,
            signal,
          });
          const { statusCode: status, body, headers: received } = answer;
          return { status, text: await body.text(), requestId: received['x-request-id'] };
        });
      const received = await inCallSpan('report VMM', { 'mooring.vmm_id': vmmId }, (headers) =>
        processDescriptors.use(() => send(headers)),
      );
      return this.#isHeard(vmmId, report, received);
    } catch {
      return false;
    }
  }

  /** Whether an answer is the control plane's last word on a report. */
  #isHeard(vmmId: string, report: SledVmmState, answer: ReceivedAnswer): boolean {
    if (answer.status === 204) {
      if (isMarked(answer)) {
        this.#marks.remember();
        this.#refusal = null;
        return true;
      }
      // Of a guest that lives the control plane can hear again; of one that is over nobody could tell it once it is forgotten.
      return !this.#marks.seen && !isTerminalVmmState(report.vmm_state.state);
    }
    const read = readControlPlaneAnswer(answer, nothing);
    if (saysExpunged(read)) this.#onExpunged(vmmId);
    if (read.kind !== 'refused') return false;
    const { status, error } = read;
    // What another agent than the sled's own knows is kept: it may be taken for the sled's own later.
    const isKept = status === 401 || error.error_code === FOREIGN_AGENT;
    if (isKept) this.#tellRefusal(`reports are refused (${status} ${error.error_code}), and kept: ${error.message}`);
    return isFinalRefusal(status) && error.error_code !== FOREIGN_AGENT;
  }

  /** Says why no report is taken, once for as long as it is the same. */
  #tellRefusal(refusal: string): void {
    if (refusal === this.#refusal) return;
    this.#refusal = refusal;
    this.#onTrouble(refusal);
  }
}
