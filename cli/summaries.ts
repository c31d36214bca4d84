/** What each command is for, in a few words: said where the command is made, and in the list of all of them. */
export const SUMMARIES = {
  up: 'run a whole stack: PostgreSQL, Temporal with its Web UI, a worker, the API, sleds',
  worker: 'run one worker process, against DATABASE_URL and TEMPORAL_ADDRESS',
  api: 'run one API process, against DATABASE_URL and TEMPORAL_ADDRESS',
  migrate: 'bring the schema of the database up to date, by a role that may change it',
  'sled-agent':
    'run a sled agent with simulated or real VMs: one that has joined, by --data alone; one without an identity, by --name and --address (add it with "mooring sled add")',
  demo: 'play the main job on a stack of its own: start, live-migrate, fail and clean up',
  instance: 'create, start, migrate, stop and look at instances',
  'affinity-group': 'keep instances together on one sled',
  'anti-affinity-group': 'keep instances apart, each on a sled of its own',
  sled: 'add and look at sleds',
  project: 'create and look at projects and their quotas',
  network: 'see where the network reaches instances',
  operation: 'follow a start or a migration',
  token: 'make, list and revoke access tokens',
  login: 'keep a token, and the API that it is for; the token is asked for, or read from standard input',
  logout: 'forget the token for an API; it stays valid until it is revoked or expires',
  whoami: 'say who the API takes you for',
  audit: 'who did what, on what, and how it ended; the newest last',
  top: 'a live view of the sleds: their use, their instances, migrations in flight',
  completion:
    'print a completion script: eval "$(mooring completion bash)", likewise zsh; mooring completion fish | source',
  doctor: 'check every invariant on a live installation: its database, its Temporal namespace and its sleds',
  reconcile: 'the loops that heal what a fault has left: look at them, switch them, run one pass',
  deployment: 'the builds of the workers: which one gets new work, which ones may be stopped (TEMPORAL_ADDRESS)',
  authority: 'the certificate authority by which sleds join',
} as const;
