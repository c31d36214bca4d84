/** The console's own addresses: all behind the hash, so that the server serves one page. Pure. */

/** What is looked at. */
export type Route =
  | { readonly view: 'fleet' }
  | { readonly view: 'instances' }
  | { readonly view: 'instance'; readonly id: string }
  | { readonly view: 'sled'; readonly id: string }
  | { readonly view: 'activity' }
  | { readonly view: 'audit' };

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

/** The view that a hash names; the fleet where it names none. */
export function routeOf(hash: string): Route {
  const [view = '', id = ''] = hash.replace(/^#\/?/, '').split('/');
  if (view === 'instances' && UUID.test(id)) return { view: 'instance', id: id.toLowerCase() };
  if (view === 'sleds' && UUID.test(id)) return { view: 'sled', id: id.toLowerCase() };
  if (view === 'instances' || view === 'activity' || view === 'audit') return { view };
  return { view: 'fleet' };
}

/** The hash of a view. */
export function hrefOf(route: Route): string {
  switch (route.view) {
    case 'fleet':
      return '#/';
    case 'instance':
      return `#/instances/${route.id}`;
    case 'sled':
      return `#/sleds/${route.id}`;
    default:
      return `#/${route.view}`;
  }
}
