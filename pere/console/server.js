// What is asked of the server. The token stays in this tab's sessionStorage and in a header: never in an address.

const KEY = "pere console token";

export const token = {
	get: () => sessionStorage.getItem(KEY) ?? "",
	set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** What the server has refused, with its code and its words. */
export class Refused extends Error {
	constructor(status, code, message) {
		super(message);
		this.status = status;
		this.code = code;
	}
}

/** The JSON of an answer, null where there is nothing new. Throws Refused; and TypeError where there is no answer. */
export async function ask(method, path, { body, headers = {}, signal } = {}) {
	const shown = token.get();
	const sent = { ...headers, ...(shown && { Authorization: `Bearer ${shown}` }) };
	const response = await fetch(path, { method, body, headers: sent, signal, cache: "no-store", credentials: shown ? "omit" : "same-origin" });
	if (response.status === 204 || response.status === 304) return null;
	const told = await response.json().catch(() => ({}));
	if (!response.ok) throw new Refused(response.status, told.error ?? "refused", told.message ?? `the server says ${response.status}`);
	return Object.assign(told, { etag: response.headers.get("ETag") });
}

export const part = encodeURIComponent;
