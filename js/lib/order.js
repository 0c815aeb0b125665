/**
 * The order in which the server made its messages. Events and answers to requests come on two ways, and one may overtake the other.
 */

/**
 * Whether one message was made before another; unknown, and so not, where one has no serial number.
 *
 * @param {number|null} one
 * @param {number|null} other
 */
export const isOlder = (one, other) => one !== null && other !== null && one < other;
