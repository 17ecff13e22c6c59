// SPDX-License-Identifier: Apache-2.0
// relight.v1.ExpertGroups: messages in, keepers asked, messages out.

import { create } from "@bufbuild/protobuf";
import type { ServerDuplexStream } from "@grpc/grpc-js";
import type { GroupKeeper } from "../elastic/keeper.ts";
import type { Speaker, Status } from "../elastic/status.ts";
import type { View } from "../elastic/view.ts";
import { encode, readJoin, readStatus } from "../elastic/wire.ts";
import { asRelightError, RelightError } from "../errors.ts";
import {
  type AbortRequest,
  type BeginRequest,
  type DescribeRequest,
  type GroupStatus,
  type ListGroupsRequest,
  type ListGroupsResponse,
  ListGroupsResponseSchema,
  type MemberEvent,
  MemberEventSchema,
  type MemberJoin,
  type MemberWord,
} from "../protocol/gen/ep_pb.ts";
import { type Access, type Admitted, mustOwn, openAccess } from "./access.ts";
import type { Groups } from "./ep-groups.ts";
import { groupStatus, readBegin } from "./ep-status.ts";
import { asStatus, presentedBy } from "./rpc.ts";
import { checkName, refuse } from "./validate.ts";

type Call = ServerDuplexStream<MemberWord, MemberEvent>;

export class EpService {
  readonly #groups: Groups;
  readonly #access: Access;

  constructor(groups: Groups, access: Access = openAccess) {
    this.#groups = groups;
    this.#access = access;
  }

  async begin(request: BeginRequest): Promise<GroupStatus> {
    const name = checkName("group", request.group);
    const wanted = readBegin(request);
    await this.#groups.begin(name, wanted);
    return groupStatus(this.#groups.keeper(name), wanted.operationId);
  }

  async abort(request: AbortRequest): Promise<GroupStatus> {
    const name = checkName("group", request.group);
    const operationId = checkName("operation_id", request.operationId);
    await this.#groups.abort(name, operationId);
    return groupStatus(this.#groups.keeper(name), operationId);
  }

  async describe(request: DescribeRequest): Promise<GroupStatus> {
    const name = checkName("group", request.group);
    return groupStatus(this.#groups.keeper(name), request.operationId);
  }

  async listGroups(_request: ListGroupsRequest): Promise<ListGroupsResponse> {
    return create(ListGroupsResponseSchema, { groups: [...this.#groups.names] });
  }

  /** One rank's stream. */
  membership(call: Call): void {
    const stream = new MemberStream(call, this.#groups);
    const fail = (error: unknown): void => {
      stream.end();
      call.emit("error", asStatus(asRelightError(error)));
    };
    const admit = () => this.#access.admit(presentedBy(call), "ep.join");
    try {
      admit();
    } catch (error) {
      fail(error);
      return;
    }
    call.on("data", (word: MemberWord) => {
      try {
        // Each word anew: a stream lives longer than a certificate.
        stream.hear(word, admit()).catch(fail);
      } catch (error) {
        fail(error);
      }
    });
    call.on("end", () => {
      stream.end();
      call.end();
    });
    for (const event of ["cancelled", "close", "error"]) call.on(event, () => stream.end());
  }
}

class MemberStream {
  readonly #call: Call;
  readonly #groups: Groups;
  readonly #listener = (view: View): void => this.#tell(view);
  #keeper: GroupKeeper | null = null;
  #memberId = "";
  #from: Speaker = { nodeId: "", owner: null };
  #isEnded = false;

  constructor(call: Call, groups: Groups) {
    this.#call = call;
    this.#groups = groups;
  }

  async hear({ kind }: MemberWord, by: Admitted | null): Promise<void> {
    if (kind.case === "join" && this.#keeper === null) return this.#join(kind.value, by);
    const keeper = this.#keeper;
    if (keeper === null) return refuse("the first word", String(kind.case), "join");
    if (kind.case === "statusJson") keeper.hear(this.#own(readStatus(kind.value)), this.#from);
    else if (kind.case === "load") keeper.hearLoad(this.#memberId, kind.value.experts);
    else refuse("a word", String(kind.case), "status_json or load");
  }

  end(): void {
    if (this.#isEnded) return;
    this.#isEnded = true;
    this.#keeper?.farewell(this.#memberId, this.#listener);
  }

  async #join(join: MemberJoin, by: Admitted | null): Promise<void> {
    const { config, occupant: claimed, wantedSlot } = readJoin(join.requestJson);
    const occupant = { ...claimed, owner: by?.uri ?? null };
    this.#memberId = occupant.memberId;
    this.#from = { nodeId: occupant.process.nodeId, owner: occupant.owner };
    const status = this.#own(readStatus(join.statusJson));
    const keeper = this.#groups.keeperFor(config);
    checkOwner(keeper, occupant.memberId, by);
    this.#keeper = keeper;
    const candidate = status.seat === null ? { occupant, wantedSlot } : null;
    await keeper.hello({ config, status, from: this.#from, candidate }, this.#listener);
    if (this.#isEnded) keeper.farewell(this.#memberId, this.#listener);
  }

  #own(status: Status): Status {
    if (status.memberId === this.#memberId) return status;
    return refuse("member_id", status.memberId, this.#memberId);
  }

  #tell(view: View): void {
    if (this.#isEnded) return;
    // The latest view is all that matters; a stream this far behind has lost its reader.
    if (this.#call.writableLength >= backlogMax) {
      this.end();
      const message = `Cannot keep the stream: ${backlogMax} views behind`;
      this.#call.emit("error", asStatus(new RelightError("store_unavailable", message)));
      return;
    }
    this.#call.write(create(MemberEventSchema, { viewJson: encode(view) }));
  }
}

const backlogMax = 256;

/** A member is taken up by who brought it. @throws RelightError `role_denied`. */
function checkOwner(keeper: GroupKeeper, memberId: string, by: Admitted | null): void {
  const seated = keeper.group?.slots.find(({ occupant }) => occupant?.memberId === memberId);
  if (seated !== undefined) mustOwn(by, "ep.join", seated.occupant?.owner ?? null);
}
