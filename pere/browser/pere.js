// PERE in a browser: a device's events, and a receipt for each. What may be said and heard, and why it is so, is in pere.d.ts.

export function Pere(url, { channels, device, token, silence, credentials, ...more }) {
	const query = new URLSearchParams({ format: "envelope", ...(device && { device }), ...more });
	for (const channel of [channels].flat()) query.append("channel", channel);
	const name = `pere ${url} ${query}`, tabs = new BroadcastChannel(name), end = new AbortController(), { signal } = end;
	const handlers = new Set();
	const known = new Map(); // what becomes of an event in this tab, by its id; null if that was before this page
	let kept = {}, prefix, feed, hello, sending, tries = 0;
	try { kept = localStorage; } catch {} // a page may be denied it

	const say = (type, detail) => {
		if (/^(connecting|open|closed)$/.test(type)) this.state = type;
		for (const [wanted, handler] of handlers) if (wanted === `pere.${type}`) queueMicrotask(() => handler(detail));
	};
	const tell = (type, detail) => {
		tabs.postMessage({ type, detail });
		say(type, detail);
	};
	const sleep = (seconds) => new Promise((go) => {
		setTimeout(go, 1000 * seconds);
		addEventListener("online", go, { once: true, signal });
	});
	const delay = ({ retry }) => retry ?? Math.random() * Math.min(30, 2 ** tries++); // seconds
	const ask = async (path, type, options) => {
		const shown = typeof token === "function" ? await token() : token;
		const response = await fetch(url + path, { ...options, credentials, headers: shown && { Authorization: `Bearer ${shown}` } });
		const { status, headers } = response;
		if (status === 200 && headers.get("Content-Type")?.startsWith(type)) return response;
		const { error, message } = await response.json().catch(() => ({}));
		// Of a captive portal no status is believed.
		const isFinal = status === 204 || (error && status < 500 && status !== 429 && (status !== 401 || shown === token));
		throw { reason: error ?? (isFinal ? "removed" : "foreign"), status, message, isFinal, retry: +headers.get("Retry-After") || undefined };
	};

	// Events

	const run = async (event) => {
		try {
			const meant = [...handlers].filter(([type]) => type === "*" || type === event.type);
			const said = await Promise.all(meant.map(([, handler]) => handler(event.data, event)));
			return { state: said.length ? "processed" : "delivered", status: said.find((word) => word != null) };
		} catch (error) {
			reportError(error);
			return { state: "failed", status: `${error}`.slice(0, 300) };
		}
	};
	const take = (event, id) => {
		if (id) query.set("last_event_id", id);
		if (!known.has(event.id)) known.set(event.id, run(event));
		if (known.size > 9999) known.delete(known.keys().next().value);
		if (this.holds && this.device) known.get(event.id)?.then((outcome) => owe(event.id, outcome));
	};

	// Receipts, which are kept until they are answered

	const owe = (id, outcome) => {
		kept[prefix + id] = JSON.stringify({ event_id: id, ...outcome });
		send();
	};
	const owed = () => Object.keys(kept).filter((key) => key.startsWith(prefix));
	const post = async () => {
		// A browser lets 64 KiB outlive their page.
		const receipts = owed().slice(0, 50).map((key) => kept[key]);
		const body = new Blob([`{"device":"${this.device}","receipts":[${receipts}]}`], { type: "application/json" });
		const answer = await ask("/feedback", "application/json", { method: "POST", keepalive: true, body });
		for (const { event_id: id, error, status, message } of (await answer.json()).results) {
			if (status === 429 || status > 499) throw { reason: error, status, message };
			// 404 is what one says who is asked for no receipt.
			if (error && status !== 404) tell("error", { reason: error, status, message, id });
			delete kept[prefix + id];
		}
		tries = 0;
	};
	const send = async () => {
		if (sending) return;
		sending = true;
		await sleep(Math.random() * hello.receipt_jitter);
		while (owed().length && !signal.aborted) {
			try {
				await post();
			} catch (why) {
				tell("error", { reason: "unreachable", ...why });
				await sleep(delay(why));
			}
		}
		sending = false;
	};

	// The feed

	const listen = async () => {
		let heard = Date.now(), looked = heard, stage = "unreachable", rest = "", bye;
		feed = new AbortController();
		const watch = setInterval(() => {
			const now = Date.now(), most = 1000 * (stage === "silent" ? silence ?? 3 * hello.heartbeat : 10); // `pere.hello` comes at once
			if (now - heard > most) feed.abort({ reason: now - looked > most ? "slept" : stage });
			looked = now;
		}, 1000);
		try {
			const { body } = await ask(`/feed?${query}`, "text/event-stream", { signal: feed.signal });
			stage = "buffered";
			for (const reader = body.pipeThrough(new TextDecoderStream()).getReader(); ; ) {
				const { value, done } = await reader.read();
				if (done) throw bye ?? { reason: "lost" };
				heard = Date.now();
				const frames = (rest + value).split("\n\n");
				rest = frames.pop();
				for (const frame of frames) {
					const [, id, isControl, type, data] = /(?:^id: (.*)\n)?(?:event: (pere\.)?(.*)\n)?data: ([^]+)/.exec(frame) ?? [];
					if (!data) continue; // a heartbeat
					const said = JSON.parse(data.replaceAll("\ndata: ", "\n"));
					if (!isControl) {
						tabs.postMessage({ event: said, id });
						take(said, id);
						continue;
					}
					if (type === "bye") bye = said;
					if (type === "hello") {
						stage = "silent";
						hello = said;
						this.device = said.device;
						prefix = `pere ${url} ${said.device} `;
						query.set("last_event_id", said.position);
						query.delete("from");
						for (const key of owed()) known.set(key.slice(prefix.length), null);
						tries = 0;
						send();
					}
					tell(type === "hello" ? "open" : type, said);
				}
			}
		} catch (why) {
			const told = { reason: stage === "silent" ? "lost" : "unreachable", message: why.message, ...why };
			if (!bye && !signal.aborted) tell("error", told);
			return told;
		} finally {
			clearInterval(watch);
			feed.abort();
		}
	};
	const hold = async () => {
		for (this.holds = true; !signal.aborted; ) {
			tell("connecting", {});
			const why = await listen(), retry = why.isFinal ? null : delay(why);
			if (why.isFinal) this.close();
			tell("closed", { ...why, retry });
			await sleep(retry);
		}
	};

	this.state = "connecting";
	this.holds = false;
	this.on = (type, handler) => {
		const each = [type, handler];
		handlers.add(each);
		return () => handlers.delete(each);
	};
	this.close = () => {
		end.abort();
		feed?.abort();
		tabs.onmessage = null;
		this.holds = false;
	};
	tabs.onmessage = ({ data: { event, id, type, detail } }) => {
		if (event) take(event, id);
		else if (type) say(type, detail);
		else if (this.holds) tabs.postMessage({ type: this.state, detail: {} });
	};
	tabs.postMessage({}); // who holds the feed says how it is
	addEventListener("pagehide", () => owed().length && post().catch(() => {}), { signal });
	// A page that is not secure has no locks: there each tab holds a feed.
	(navigator.locks?.request(name, { signal }, hold) ?? hold()).catch(() => say("closed", { retry: null }));
}
