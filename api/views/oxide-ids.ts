/** The ids that the Oxide API has for what this installation has one of. */

/** The Oxide API shows a sled's rack; this installation is one. */
export const RACK_ID = '00000000-0000-4000-8000-000000000001';
/** And a user's silo: this installation is one, too. */
export const SILO_ID = '00000000-0000-4000-8000-000000000002';
/** Whoever acts without a token. */
export const LOCAL_USER_ID = '00000000-0000-4000-8000-000000000003';
