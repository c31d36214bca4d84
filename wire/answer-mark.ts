/**
 * By what an answer is known to be the control plane's own, or a sled agent's. Between the two, and before a client, there may
 * be proxies, gateways and captive portals, and at an old address there may be anybody: they answer in HTTP, too. What does
 * not carry the mark is no answer, whatever its status: it decides nothing, and the call is made again (section 7 of
 * docs/design.md).
 *
 * The mark of a success is that it is what the call's schema says. That of the control plane's errors is their body, with
 * `error_code`, `message` and `request_id`; that of a sled agent's the `error_code` alone, all that section 7 asks of agents
 * which others wrote. An answer without a body has the header `x-request-id`.
 */
import { z } from 'zod';

/** An answer as it came: its status, its body, and its header `x-request-id`, where it has one. */
export interface ReceivedAnswer {
  readonly status: number;
  readonly text: string;
  readonly requestId?: string | readonly string[] | null | undefined;
}

const controlPlaneError = z.looseObject({
  error_code: z.string().min(1),
  message: z.string(),
  request_id: z.string().min(1),
});
/** An error of the control plane, with what a single endpoint adds to it. */
export type ControlPlaneError = z.infer<typeof controlPlaneError>;

/** What an answer to a call of the control plane is. */
export type ControlPlaneAnswer<Value> =
  | { readonly kind: 'done'; readonly value: Value }
  | { readonly kind: 'refused'; readonly status: number; readonly error: ControlPlaneError }
  /** Somebody else's: it says nothing. `why`: what came instead, for people. */
  | { readonly kind: 'none'; readonly why: string };

/** The schema of an answer without a body (204). */
export const nothing = z.undefined();

/** Whose word an answer is that should be the control plane's, and what it says. Never throws. */
export function readControlPlaneAnswer<Value>(
  answer: ReceivedAnswer,
  schema: z.ZodType<Value>,
): ControlPlaneAnswer<Value> {
  const { status, text } = answer;
  const none = (why: string) => ({ kind: 'none', why: `${describeAnswer(answer)}${why}` }) as const;
  if (status === 204) {
    const empty = text === '' && isMarked(answer) ? schema.safeParse(undefined) : null;
    return empty?.success ? { kind: 'done', value: empty.data } : none('');
  }
  const body = parseJson(text);
  if (status >= 200 && status < 300 && body !== undefined) {
    const read = schema.safeParse(body);
    if (read.success) return { kind: 'done', value: read.data };
    const [issue] = read.error.issues;
    return none(
      issue === undefined ? '' : `, which is not what was asked for (${issue.path.join('.')}: ${issue.message})`,
    );
  }
  const error = controlPlaneError.safeParse(body);
  return error.success && status >= 400 && status < 600 ? { kind: 'refused', status, error: error.data } : none('');
}

/** Whether an answer has the header of the control plane's answers. */
export function isMarked({ requestId }: ReceivedAnswer): boolean {
  return requestId != null && requestId.length > 0;
}

const sledError = z.looseObject({ error_code: z.string().min(1), message: z.string().optional().catch(undefined) });

/** The error of a sled agent; `null` for a body without its mark, which is somebody else's. Never throws. */
export function readSledError(text: string): { error_code: string; message?: string | undefined } | null {
  return sledError.safeParse(parseJson(text)).data ?? null;
}

/**
 * Whether an error is an agent's by itself: it has an agent's mark, and is not of the shape of the control plane's own, which are
 * an agent's only where something else shows it. Never throws.
 */
export function isAgentsError(text: string): boolean {
  return readSledError(text) !== null && !controlPlaneError.safeParse(parseJson(text)).success;
}

/** How much of a stranger's answer is shown, in characters. */
const SHOWN = 200;

/** An answer in a few words, for a message. */
export function describeAnswer({ status, text }: ReceivedAnswer): string {
  const shown = text.replace(/\s+/g, ' ').trim().slice(0, SHOWN);
  return `${status}${shown === '' ? '' : ` ${JSON.stringify(shown)}`}`;
}

/** What JSON says; `undefined` for what is none. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
