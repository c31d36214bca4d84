/** A fleet that is too large to be made for a test: as the API would list it, page by page. */

/** Pages of so many sleds and instances, each by the address that asks for it. */
export function fleetOf(sledCount: number, instanceCount: number) {
  const sled = (number: number) => ({
    id: uuid(1, number),
    name: `sled-${number}`,
    policy: { kind: 'in_service', provision_policy: 'provisionable' },
    state: 'active',
    threads: 128,
    memory: 2 ** 40,
    threads_reserved: 50,
    memory_reserved: 50 * 2 ** 30,
    lease: null,
    declared_dead: null,
    silent_since: null,
    agent: null,
  });
  const instance = (number: number) => ({
    id: uuid(2, number),
    name: `vm-${number}`,
    project_id: uuid(3, number % 4),
    run_state: 'running',
    ncpus: 1,
    memory: 2 ** 30,
    sled_id: uuid(1, number % sledCount),
    migration_target_sled_id: null,
  });
  const pages = (count: number, item: (number: number) => object) => (address: string) => {
    const query = new URL(address).searchParams;
    const [from, limit] = [Number(query.get('page_token') ?? 0), Number(query.get('limit'))];
    const end = Math.min(count, from + limit);
    return {
      items: Array.from({ length: end - from }, (_, index) => item(from + index)),
      next_page: end === count ? null : String(end),
    };
  };
  return { sleds: pages(sledCount, sled), instances: pages(instanceCount, instance) };
}

function uuid(kind: number, number: number): string {
  return `${String(kind).padStart(8, '0')}-0000-4000-8000-${String(number).padStart(12, '0')}`;
}
