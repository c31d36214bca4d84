/** The fields of the SDK's log lines under our names, so that one filter finds every line about an instance. */

const KINDS: Readonly<Record<string, 'instance_id' | 'vmm_id' | 'sled_id'>> = {
  'instance-start': 'instance_id',
  'instance-migrate': 'instance_id',
  'instance-update': 'instance_id',
  'instance-stop': 'instance_id',
  'vmm-unwind': 'vmm_id',
  'vmm-unregister': 'vmm_id',
  'sled-drain': 'sled_id',
};

/** The saga that a workflow id names, and its subject. */
export function fieldsOfWorkflowId(workflowId: string): Record<string, string> {
  const slash = workflowId.indexOf('/');
  const saga = slash < 0 ? workflowId : workflowId.slice(0, slash);
  const subject = KINDS[saga];
  return subject === undefined ? { saga } : { saga, [subject]: workflowId.slice(slash + 1) };
}

/**
 * The fields of a line that the SDK logs for a workflow, an activity or itself: saga, instance or VMM, step, attempt and
 * operation by our names; what the caller added stays as it is; the SDK's internal fields are left out.
 */
export function logFields(meta: Record<string | symbol, unknown>): Record<string, unknown> {
  const { workflowId, workflowType, activityType, attempt, error, sdkComponent, ...rest } = meta;
  // The SDK has two names for it.
  const runId = rest.runId ?? rest.workflowRunId;
  for (const internal of [
    'namespace',
    'taskQueue',
    'activityId',
    'isLocal',
    'taskToken',
    'taskQueueType',
    'runId',
    'workflowRunId',
  ])
    delete rest[internal];
  return {
    ...(typeof workflowId === 'string' ? fieldsOfWorkflowId(workflowId) : {}),
    ...(workflowType === undefined ? {} : { workflow_type: workflowType }),
    ...(runId === undefined ? {} : { [isOperation(workflowId) ? 'operation_id' : 'run_id']: runId }),
    ...(activityType === undefined ? {} : { step: activityType, attempt }),
    ...(sdkComponent === undefined ? {} : { component: sdkComponent }),
    ...(error === undefined ? {} : { err: error }),
    ...rest,
  };
}

/** The run of a start or a migration is the operation that its caller follows. */
function isOperation(workflowId: unknown): boolean {
  return typeof workflowId === 'string' && /^instance-(start|migrate)\//.test(workflowId);
}
