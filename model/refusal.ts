/** The error codes of the API's error body; the HTTP status follows from each. */
export const REFUSAL_STATUS = {
  InvalidRequest: 400,
  ObjectAlreadyExists: 400,
  Unauthorized: 401,
  Forbidden: 403,
  NotFound: 404,
  Conflict: 409,
  IdempotencyKeyReused: 422,
  ServiceUnavailable: 503,
  InsufficientCapacity: 507,
} as const;
export type RefusalCode = keyof typeof REFUSAL_STATUS;
/** Verdicts on what a request asks for, as things were when it came: whoever sends it again under its key gets the same. */
export const FINAL_REFUSALS = [
  'InvalidRequest',
  'ObjectAlreadyExists',
  'NotFound',
  'Conflict',
] as const satisfies readonly RefusalCode[];
/** A final refusal, as it is kept for a key. */
export interface KeptRefusal {
  readonly code: (typeof FINAL_REFUSALS)[number];
  readonly message: string;
}

/**
 * A request that can't be done, and why, in words for the one who asked. Final: trying the same again without a change
 * elsewhere gives the same. Nothing was written.
 */
export class Refusal extends Error {
  override readonly name = 'Refusal';
  readonly code: RefusalCode;

  constructor(code: RefusalCode, message: string) {
    super(message);
    this.code = code;
  }

  /** What is kept of it for the key of its request; `null` where another try may go otherwise, and should be made. */
  get kept(): KeptRefusal | null {
    const code = FINAL_REFUSALS.find((final) => final === this.code);
    return code === undefined ? null : { code, message: this.message };
  }

  /** The HTTP status of this refusal. */
  get status(): number {
    return REFUSAL_STATUS[this.code];
  }

  static invalid(message: string): Refusal {
    return new Refusal('InvalidRequest', message);
  }
  static nameTaken(kind: string, name: string): Refusal {
    return new Refusal('ObjectAlreadyExists', `already exists: ${kind} "${name}"; choose another name`);
  }
  static notFound(kind: string, nameOrId: string): Refusal {
    return new Refusal('NotFound', `not found: ${kind} with name or id "${nameOrId}"`);
  }
  /** Nobody is known by what the request carries. */
  static unauthorized(message: string): Refusal {
    return new Refusal('Unauthorized', message);
  }
  /** The caller is known, and may not. */
  static forbidden(message: string): Refusal {
    return new Refusal('Forbidden', message);
  }
  static conflict(message: string): Refusal {
    return new Refusal('Conflict', message);
  }
  /** A key that a client gave another request before; nothing is done. */
  static keyReused(key: string): Refusal {
    return new Refusal(
      'IdempotencyKeyReused',
      `Idempotency-Key: ${key} was given to another request before, and nothing was done: give each new request a new key`,
    );
  }
  static unavailable(message: string): Refusal {
    return new Refusal('ServiceUnavailable', message);
  }
  static noCapacity(message: string): Refusal {
    return new Refusal('InsufficientCapacity', message);
  }
}
