/**
 * PERE in a browser: the events of a device as they come, and a receipt for each.
 *
 *     import { Pere } from "https://pere.example/pere.js";
 *
 *     const pere = new Pere("https://pere.example", { channels: ["orders"], device: "till-1" });
 *     pere.on("order", async (order, event) => {
 *         await print(order);
 *         return "printed";   // the receipt: processed, with this status; what is thrown makes it failed
 *     });
 *
 * Why fetch() and not EventSource: it sends a token in a header, where an EventSource has to put it into the address, and it sees what an
 * EventSource hides: statuses, heartbeats, and answers that are no feed. So each trouble has a name. To go on where it was, which an
 * EventSource does by itself, takes one variable.
 *
 * One feed for all tabs: a browser opens six connections to a server over HTTP/1.1, over all its tabs. So of the tabs that ask for the same
 * (server, device, channels) one holds the feed, elected by a Web Lock, and hands on what comes over a BroadcastChannel. When it is
 * closed or dies, the next one takes over: the server sends it what is still owed, and every tab knows by the ids what it has had.
 * Every tab runs its handlers, once for each event; the receipt says what became of it in the tab that holds the feed. (In a page that is
 * not a secure context there are no locks, and each tab has a feed.) Name the `device` where tabs of one origin may be different ones.
 *
 * A receipt is kept in localStorage until it is answered: sent at once, again until there is an answer, once more when the page goes
 * away, and by the next page that is the same device. That page does not run the handlers for it again. (Where a page is denied its localStorage,
 * they live as long as it does.)
 */
export class Pere {
	/**
	 * @param url the server, such as `https://pere.example`, without a slash at the end; `""` is where the page comes from
	 */
	constructor(url: string, options: PereOptions);

	/** How the feed is, whichever tab holds it. */
	readonly state: "connecting" | "open" | "closed";
	/** Whether it is this tab that holds the feed, and gives the receipts. */
	readonly holds: boolean;
	/** Who the server takes us for, in the tab that holds the feed, once it is open; null if nobody. */
	readonly device?: string | null;

	/**
	 * Be told of what happens to the feed. Of publishers' events no type begins with `pere.`, so these names are not theirs.
	 * @returns what ends it
	 */
	on<Type extends keyof PereStates>(type: Type, handler: (detail: PereStates[Type]) => void): () => void;
	/**
	 * Deal with events of a type; those that were pushed without one are of the type `message`, and `*` is every type.
	 *
	 * The receipt is given when all handlers for the event are done. What the first of them returns that returns something is its status:
	 * text or JSON of at most 1 KiB (a longer one is refused: `large_status`). If one throws, the receipt is `failed`, and the error its status. If there is none,
	 * it is `delivered`, and the device still owes one.
	 * @returns what ends it
	 */
	on<Data = unknown>(type: string, handler: (data: Data, event: PereEvent<Data>) => unknown): () => void;

	/** Let go of the feed, for good. Receipts that are not answered stay with the browser for the next page. */
	close(): void;
}

export interface PereOptions {
	/** Channels and patterns such as `orders.*`. */
	channels: string | string[];
	/** Who this is; with a token, whoever that is of. Without either the feed is live only and owes no receipts. */
	device?: string;
	/** A token, or what gives one: it is asked before each request, so it can renew one that expires. A string that has expired is the end. */
	token?: string | (() => string | Promise<string>);
	/** Seconds without even a heartbeat until the feed counts as lost; three heartbeats, if it is not said. */
	silence?: number;
	/** Of fetch(): whether cookies go with it, which is so on the same origin; `include` is for one that the server has on another, `omit` for none beside a token. */
	credentials?: RequestCredentials;
	/** Where to begin: `new`, `all` that is kept, or after an id. */
	from?: string;
	/** Have an event sent again that is not answered after so many seconds. */
	ack_wait?: number;
	/** Have at most so many events under way. */
	window?: number;
}

export interface PereEvent<Data = unknown> {
	id: string;
	channel: string;
	type: string;
	/** RFC 3339. */
	time: string;
	/** 1, or more if it was sent to the device before. */
	attempt: number;
	data: Data;
}

export interface PereStates {
	"pere.connecting": {};
	/** The feed is open: who we are for the server, and where we are. Empty where another tab had opened it before. */
	"pere.open": { device?: string | null; position?: string; receipt_jitter?: number };
	/** The feed has ended, and is opened again in `retry` seconds; null if not. */
	"pere.closed": PereTrouble;
	/** So many events after `from` will never come (null: nobody knows how many). */
	"pere.gap": { channel: string; from: string; to: string; lost: number | null };
	/** An event was recalled: forget it, if it is not done. */
	"pere.cancel": { id: string; channel: string };
	/** The server ends the feed: `drain`, `replaced`, `kicked`, `expired`, `redeliver` or `unkept`. */
	"pere.bye": { reason: string; retry: number };
	/** Something is wrong with the feed, or with a receipt (then `id` says of which event). */
	"pere.error": PereTrouble;
}

export interface PereTrouble {
	/**
	 * - `unreachable`: there is no answer
	 * - `lost`: the feed broke off
	 * - `silent`: not even heartbeats come; a network that is gone, or a proxy that holds them back
	 * - `buffered`: the feed was opened, and nothing comes: a proxy holds everything back
	 * - `slept`: the machine was asleep
	 * - `foreign`: what answers is not PERE: a captive portal, a proxy
	 * - `removed`: the device was deleted (204), for good
	 * - else the code of the server's refusal, such as `expired_token`, `not_allowed`, `too_many`
	 */
	reason: string;
	status?: number;
	message?: string;
	id?: string;
	/** Seconds. */
	retry?: number | null;
}
