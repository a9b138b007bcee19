package dev.credentialbroker.v1;

import static io.grpc.MethodDescriptor.generateFullMethodName;

/**
 * <pre>
 * Hands out ready-made authorization headers for calls to a backend, and binds the threads of a caller to tasks.
 * A caller names what a call is for (a scope) and which conversation or run it belongs to (a thread), and gets the
 * complete set of headers to attach. It never sees a key, a backend's task id or a refresh token.
 * Rules for every RPC of this service:
 *   - Metadata `x-credential-broker: 1` is required; else INVALID_ARGUMENT GUARD_HEADER_MISSING.
 *   - The broker sets a deadline of 10 s where the call has none or a longer one (streams: none), and refuses one that
 *     is too short to answer with DEADLINE_TOO_SHORT.
 *   - `identity` unset means the caller's default identity, else the only one it is granted, else IDENTITY_REQUIRED:
 *     never the first of several.
 *   - Strings are UTF-8 without control characters. A field over its limit is FIELD_INVALID; nothing is cut silently.
 *   - Errors are described at `ErrorReason`. Beside those that an RPC names, each may answer CALLER_UNAUTHENTICATED,
 *     NOT_ALLOWED, CALLER_RATE, OVERLOAD, WARMING_UP, DRAINING, STORE_DOWN, AUDIT_DOWN, ROW_CORRUPT and INTERNAL.
 * </pre>
 */
@io.grpc.stub.annotations.GrpcGenerated
public final class CredentialBrokerGrpc {

  private CredentialBrokerGrpc() {}

  public static final java.lang.String SERVICE_NAME = "credentialbroker.v1.CredentialBroker";

  // Static method descriptors that strictly reflect the proto.
  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.GetAuthorizationRequest,
      dev.credentialbroker.v1.GetAuthorizationResponse> getGetAuthorizationMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "GetAuthorization",
      requestType = dev.credentialbroker.v1.GetAuthorizationRequest.class,
      responseType = dev.credentialbroker.v1.GetAuthorizationResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.GetAuthorizationRequest,
      dev.credentialbroker.v1.GetAuthorizationResponse> getGetAuthorizationMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.GetAuthorizationRequest, dev.credentialbroker.v1.GetAuthorizationResponse> getGetAuthorizationMethod;
    if ((getGetAuthorizationMethod = CredentialBrokerGrpc.getGetAuthorizationMethod) == null) {
      synchronized (CredentialBrokerGrpc.class) {
        if ((getGetAuthorizationMethod = CredentialBrokerGrpc.getGetAuthorizationMethod) == null) {
          CredentialBrokerGrpc.getGetAuthorizationMethod = getGetAuthorizationMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.GetAuthorizationRequest, dev.credentialbroker.v1.GetAuthorizationResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "GetAuthorization"))
              .setIdempotent(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.GetAuthorizationRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.GetAuthorizationResponse.getDefaultInstance()))
              .setSchemaDescriptor(new CredentialBrokerMethodDescriptorSupplier("GetAuthorization"))
              .build();
        }
      }
    }
    return getGetAuthorizationMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.RegisterTaskRequest,
      dev.credentialbroker.v1.RegisterTaskResponse> getRegisterTaskMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "RegisterTask",
      requestType = dev.credentialbroker.v1.RegisterTaskRequest.class,
      responseType = dev.credentialbroker.v1.RegisterTaskResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.RegisterTaskRequest,
      dev.credentialbroker.v1.RegisterTaskResponse> getRegisterTaskMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.RegisterTaskRequest, dev.credentialbroker.v1.RegisterTaskResponse> getRegisterTaskMethod;
    if ((getRegisterTaskMethod = CredentialBrokerGrpc.getRegisterTaskMethod) == null) {
      synchronized (CredentialBrokerGrpc.class) {
        if ((getRegisterTaskMethod = CredentialBrokerGrpc.getRegisterTaskMethod) == null) {
          CredentialBrokerGrpc.getRegisterTaskMethod = getRegisterTaskMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.RegisterTaskRequest, dev.credentialbroker.v1.RegisterTaskResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "RegisterTask"))
              .setIdempotent(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.RegisterTaskRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.RegisterTaskResponse.getDefaultInstance()))
              .setSchemaDescriptor(new CredentialBrokerMethodDescriptorSupplier("RegisterTask"))
              .build();
        }
      }
    }
    return getRegisterTaskMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.EndTaskRequest,
      dev.credentialbroker.v1.EndTaskResponse> getEndTaskMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "EndTask",
      requestType = dev.credentialbroker.v1.EndTaskRequest.class,
      responseType = dev.credentialbroker.v1.EndTaskResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.EndTaskRequest,
      dev.credentialbroker.v1.EndTaskResponse> getEndTaskMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.EndTaskRequest, dev.credentialbroker.v1.EndTaskResponse> getEndTaskMethod;
    if ((getEndTaskMethod = CredentialBrokerGrpc.getEndTaskMethod) == null) {
      synchronized (CredentialBrokerGrpc.class) {
        if ((getEndTaskMethod = CredentialBrokerGrpc.getEndTaskMethod) == null) {
          CredentialBrokerGrpc.getEndTaskMethod = getEndTaskMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.EndTaskRequest, dev.credentialbroker.v1.EndTaskResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "EndTask"))
              .setIdempotent(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.EndTaskRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.EndTaskResponse.getDefaultInstance()))
              .setSchemaDescriptor(new CredentialBrokerMethodDescriptorSupplier("EndTask"))
              .build();
        }
      }
    }
    return getEndTaskMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.ReportRejectedRequest,
      dev.credentialbroker.v1.ReportRejectedResponse> getReportRejectedMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ReportRejected",
      requestType = dev.credentialbroker.v1.ReportRejectedRequest.class,
      responseType = dev.credentialbroker.v1.ReportRejectedResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.ReportRejectedRequest,
      dev.credentialbroker.v1.ReportRejectedResponse> getReportRejectedMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.ReportRejectedRequest, dev.credentialbroker.v1.ReportRejectedResponse> getReportRejectedMethod;
    if ((getReportRejectedMethod = CredentialBrokerGrpc.getReportRejectedMethod) == null) {
      synchronized (CredentialBrokerGrpc.class) {
        if ((getReportRejectedMethod = CredentialBrokerGrpc.getReportRejectedMethod) == null) {
          CredentialBrokerGrpc.getReportRejectedMethod = getReportRejectedMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.ReportRejectedRequest, dev.credentialbroker.v1.ReportRejectedResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ReportRejected"))
              .setIdempotent(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.ReportRejectedRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.ReportRejectedResponse.getDefaultInstance()))
              .setSchemaDescriptor(new CredentialBrokerMethodDescriptorSupplier("ReportRejected"))
              .build();
        }
      }
    }
    return getReportRejectedMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.WatchAuthorizationsRequest,
      dev.credentialbroker.v1.WatchAuthorizationsResponse> getWatchAuthorizationsMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "WatchAuthorizations",
      requestType = dev.credentialbroker.v1.WatchAuthorizationsRequest.class,
      responseType = dev.credentialbroker.v1.WatchAuthorizationsResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.BIDI_STREAMING)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.WatchAuthorizationsRequest,
      dev.credentialbroker.v1.WatchAuthorizationsResponse> getWatchAuthorizationsMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.WatchAuthorizationsRequest, dev.credentialbroker.v1.WatchAuthorizationsResponse> getWatchAuthorizationsMethod;
    if ((getWatchAuthorizationsMethod = CredentialBrokerGrpc.getWatchAuthorizationsMethod) == null) {
      synchronized (CredentialBrokerGrpc.class) {
        if ((getWatchAuthorizationsMethod = CredentialBrokerGrpc.getWatchAuthorizationsMethod) == null) {
          CredentialBrokerGrpc.getWatchAuthorizationsMethod = getWatchAuthorizationsMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.WatchAuthorizationsRequest, dev.credentialbroker.v1.WatchAuthorizationsResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.BIDI_STREAMING)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "WatchAuthorizations"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.WatchAuthorizationsRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.WatchAuthorizationsResponse.getDefaultInstance()))
              .setSchemaDescriptor(new CredentialBrokerMethodDescriptorSupplier("WatchAuthorizations"))
              .build();
        }
      }
    }
    return getWatchAuthorizationsMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.ExplainAuthorizationRequest,
      dev.credentialbroker.v1.ExplainAuthorizationResponse> getExplainAuthorizationMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ExplainAuthorization",
      requestType = dev.credentialbroker.v1.ExplainAuthorizationRequest.class,
      responseType = dev.credentialbroker.v1.ExplainAuthorizationResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.ExplainAuthorizationRequest,
      dev.credentialbroker.v1.ExplainAuthorizationResponse> getExplainAuthorizationMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.ExplainAuthorizationRequest, dev.credentialbroker.v1.ExplainAuthorizationResponse> getExplainAuthorizationMethod;
    if ((getExplainAuthorizationMethod = CredentialBrokerGrpc.getExplainAuthorizationMethod) == null) {
      synchronized (CredentialBrokerGrpc.class) {
        if ((getExplainAuthorizationMethod = CredentialBrokerGrpc.getExplainAuthorizationMethod) == null) {
          CredentialBrokerGrpc.getExplainAuthorizationMethod = getExplainAuthorizationMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.ExplainAuthorizationRequest, dev.credentialbroker.v1.ExplainAuthorizationResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ExplainAuthorization"))
              .setSafe(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.ExplainAuthorizationRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.ExplainAuthorizationResponse.getDefaultInstance()))
              .setSchemaDescriptor(new CredentialBrokerMethodDescriptorSupplier("ExplainAuthorization"))
              .build();
        }
      }
    }
    return getExplainAuthorizationMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.credentialbroker.v1.ListScopesRequest,
      dev.credentialbroker.v1.ListScopesResponse> getListScopesMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "ListScopes",
      requestType = dev.credentialbroker.v1.ListScopesRequest.class,
      responseType = dev.credentialbroker.v1.ListScopesResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.credentialbroker.v1.ListScopesRequest,
      dev.credentialbroker.v1.ListScopesResponse> getListScopesMethod() {
    io.grpc.MethodDescriptor<dev.credentialbroker.v1.ListScopesRequest, dev.credentialbroker.v1.ListScopesResponse> getListScopesMethod;
    if ((getListScopesMethod = CredentialBrokerGrpc.getListScopesMethod) == null) {
      synchronized (CredentialBrokerGrpc.class) {
        if ((getListScopesMethod = CredentialBrokerGrpc.getListScopesMethod) == null) {
          CredentialBrokerGrpc.getListScopesMethod = getListScopesMethod =
              io.grpc.MethodDescriptor.<dev.credentialbroker.v1.ListScopesRequest, dev.credentialbroker.v1.ListScopesResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "ListScopes"))
              .setSafe(true)
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.ListScopesRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.credentialbroker.v1.ListScopesResponse.getDefaultInstance()))
              .setSchemaDescriptor(new CredentialBrokerMethodDescriptorSupplier("ListScopes"))
              .build();
        }
      }
    }
    return getListScopesMethod;
  }

  /**
   * Creates a new async stub that supports all call types for the service
   */
  public static CredentialBrokerStub newStub(io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<CredentialBrokerStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<CredentialBrokerStub>() {
        @java.lang.Override
        public CredentialBrokerStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new CredentialBrokerStub(channel, callOptions);
        }
      };
    return CredentialBrokerStub.newStub(factory, channel);
  }

  /**
   * Creates a new blocking-style stub that supports all types of calls on the service
   */
  public static CredentialBrokerBlockingV2Stub newBlockingV2Stub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<CredentialBrokerBlockingV2Stub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<CredentialBrokerBlockingV2Stub>() {
        @java.lang.Override
        public CredentialBrokerBlockingV2Stub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new CredentialBrokerBlockingV2Stub(channel, callOptions);
        }
      };
    return CredentialBrokerBlockingV2Stub.newStub(factory, channel);
  }

  /**
   * Creates a new blocking-style stub that supports unary and streaming output calls on the service
   */
  public static CredentialBrokerBlockingStub newBlockingStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<CredentialBrokerBlockingStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<CredentialBrokerBlockingStub>() {
        @java.lang.Override
        public CredentialBrokerBlockingStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new CredentialBrokerBlockingStub(channel, callOptions);
        }
      };
    return CredentialBrokerBlockingStub.newStub(factory, channel);
  }

  /**
   * Creates a new ListenableFuture-style stub that supports unary calls on the service
   */
  public static CredentialBrokerFutureStub newFutureStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<CredentialBrokerFutureStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<CredentialBrokerFutureStub>() {
        @java.lang.Override
        public CredentialBrokerFutureStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new CredentialBrokerFutureStub(channel, callOptions);
        }
      };
    return CredentialBrokerFutureStub.newStub(factory, channel);
  }

  /**
   * <pre>
   * Hands out ready-made authorization headers for calls to a backend, and binds the threads of a caller to tasks.
   * A caller names what a call is for (a scope) and which conversation or run it belongs to (a thread), and gets the
   * complete set of headers to attach. It never sees a key, a backend's task id or a refresh token.
   * Rules for every RPC of this service:
   *   - Metadata `x-credential-broker: 1` is required; else INVALID_ARGUMENT GUARD_HEADER_MISSING.
   *   - The broker sets a deadline of 10 s where the call has none or a longer one (streams: none), and refuses one that
   *     is too short to answer with DEADLINE_TOO_SHORT.
   *   - `identity` unset means the caller's default identity, else the only one it is granted, else IDENTITY_REQUIRED:
   *     never the first of several.
   *   - Strings are UTF-8 without control characters. A field over its limit is FIELD_INVALID; nothing is cut silently.
   *   - Errors are described at `ErrorReason`. Beside those that an RPC names, each may answer CALLER_UNAUTHENTICATED,
   *     NOT_ALLOWED, CALLER_RATE, OVERLOAD, WARMING_UP, DRAINING, STORE_DOWN, AUDIT_DOWN, ROW_CORRUPT and INTERNAL.
   * </pre>
   */
  public interface AsyncService {

    /**
     * <pre>
     * Returns the headers to attach to one call, or to every call until they expire. The main job.
     * Who: a caller granted the identity and the scope.
     * Idempotency: safe to repeat and to retry. The first call for a thread registers a task at the backend; however many
     * callers wait for it, there is one registration, and it goes on when a caller gives up. Calls after that touch
     * neither backend nor store.
     * Errors: SCOPE_UNKNOWN, SCOPE_DISABLED, THREAD_ID_REQUIRED, THREAD_ID_INVALID, IDENTITY_REQUIRED, FIELD_INVALID,
     * IDENTITY_REVOKED, TARGET_NOT_ALLOWED, ACCOUNT_MISMATCH, MIN_VALIDITY_TOO_LONG, FEATURE_DISABLED,
     * BACKEND_UNSUPPORTED, BEARER_UNAVAILABLE, IDENTITY_REJECTED, REAUTH_REQUIRED, TASK_ENDED, CLOCK_SKEW, QUOTA_TASKS,
     * GENERATION_CHANGED, REGISTRATION_IN_PROGRESS, BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, ISSUER_DOWN,
     * KEY_PROVIDER_DOWN.
     * </pre>
     */
    default void getAuthorization(dev.credentialbroker.v1.GetAuthorizationRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.GetAuthorizationResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getGetAuthorizationMethod(), responseObserver);
    }

    /**
     * <pre>
     * Makes sure that a thread, or the background work of an identity, has a live task, so that later calls need not wait
     * for one. Nobody has to call it: GetAuthorization registers on first need.
     * Who: a caller granted the identity, with the right to register tasks.
     * Idempotency: by (identity, thread) or (identity, background): while the task lives, repeating answers the same task.
     * On a thread whose task was ended or revoked it starts a new task.
     * Errors: THREAD_ID_INVALID, IDENTITY_REQUIRED, FIELD_INVALID, IDENTITY_REVOKED, FEATURE_DISABLED,
     * BACKEND_UNSUPPORTED (also for an identity of mode BEARER, which has no tasks), IDENTITY_REJECTED, REAUTH_REQUIRED,
     * CLOCK_SKEW, QUOTA_TASKS, GENERATION_CHANGED, REGISTRATION_IN_PROGRESS, BACKEND_DOWN, BACKEND_THROTTLED,
     * BACKEND_PROTOCOL, KEY_PROVIDER_DOWN.
     * </pre>
     */
    default void registerTask(dev.credentialbroker.v1.RegisterTaskRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.RegisterTaskResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getRegisterTaskMethod(), responseObserver);
    }

    /**
     * <pre>
     * Ends the task of a thread: GetAuthorization answers TASK_ENDED for it from then on, while its tombstone lives (30
     * days by default). Ends only this binding; other threads that share the upstream task go on. The background task
     * cannot be ended by callers.
     * Who: a caller granted the identity, with the right to end tasks.
     * Idempotency: repeating answers the same ended task. For a thread that never had a task it leaves a tombstone, so
     * that a registration that comes late finds the thread ended.
     * Errors: THREAD_ID_REQUIRED, THREAD_ID_INVALID, IDENTITY_REQUIRED, IDENTITY_REVOKED, GENERATION_CHANGED.
     * </pre>
     */
    default void endTask(dev.credentialbroker.v1.EndTaskRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.EndTaskResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getEndTaskMethod(), responseObserver);
    }

    /**
     * <pre>
     * Reports that the backend answered 401 to an authorization, and returns a better one.
     * If a newer one exists it is returned at once. Else the broker tries, each at most once within a window (10 minutes
     * by default) however many callers report: a fresh task for an assertion, then a new registration of the identity; a
     * refresh for a bearer. A rejected assertion never spends a refresh token.
     * Who: the caller that was given the revision. Another caller's revision is REVISION_UNKNOWN and changes nothing.
     * Idempotency: safe to repeat; a revision that has been replaced costs nothing.
     * Errors: those of GetAuthorization, and REVISION_UNKNOWN. BACKEND_UNSUPPORTED: only this scope's route rejects the
     * identity's assertions, while others accept them. IDENTITY_REJECTED, REAUTH_REQUIRED: nothing is left to try.
     * </pre>
     */
    default void reportRejected(dev.credentialbroker.v1.ReportRejectedRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ReportRejectedResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getReportRejectedMethod(), responseObserver);
    }

    /**
     * <pre>
     * Keeps authorizations current without asking: each subscription gets its first value at once, the next before
     * `refresh_time`, and a withdrawal within a second of a revocation. Each value is authorised anew when it is sent.
     * A subscription that is denied or fails gets an `error`, stays, and is tried again by the broker; it never ends the
     * stream. The broker sends `closing` and ends the stream with OK before the connection gets too old; open a new one
     * then, with the revisions held, so that unchanged values are not sent again. A stream holds at most 1,000
     * subscriptions; a further one gets an `error` WATCH_LIMIT.
     * Who: a caller granted the identity and scope of each subscription.
     * Errors that end the stream: WATCH_LIMIT (too many streams of this caller), WATCHER_TOO_SLOW, and those named at the
     * service. A malformed first message is FIELD_INVALID; later ones get an `error`.
     * </pre>
     */
    default io.grpc.stub.StreamObserver<dev.credentialbroker.v1.WatchAuthorizationsRequest> watchAuthorizations(
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.WatchAuthorizationsResponse> responseObserver) {
      return io.grpc.stub.ServerCalls.asyncUnimplementedStreamingCall(getWatchAuthorizationsMethod(), responseObserver);
    }

    /**
     * <pre>
     * Says what GetAuthorization would decide for the same request and which rules lead to it. A dry run: registers,
     * refreshes and hands out nothing.
     * Who: a caller granted the identity and the scope.
     * Errors: SCOPE_UNKNOWN, THREAD_ID_REQUIRED, THREAD_ID_INVALID, IDENTITY_REQUIRED, FIELD_INVALID. A refusal is an
     * answer here, not an error.
     * </pre>
     */
    default void explainAuthorization(dev.credentialbroker.v1.ExplainAuthorizationRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ExplainAuthorizationResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getExplainAuthorizationMethod(), responseObserver);
    }

    /**
     * <pre>
     * Lists the scopes that the caller may use, with their rules, ordered by name.
     * Who: every caller; the list holds only what it may use with at least one identity.
     * Errors: FIELD_INVALID, PAGE_TOKEN_INVALID.
     * </pre>
     */
    default void listScopes(dev.credentialbroker.v1.ListScopesRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ListScopesResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getListScopesMethod(), responseObserver);
    }
  }

  /**
   * Base class for the server implementation of the service CredentialBroker.
   * <pre>
   * Hands out ready-made authorization headers for calls to a backend, and binds the threads of a caller to tasks.
   * A caller names what a call is for (a scope) and which conversation or run it belongs to (a thread), and gets the
   * complete set of headers to attach. It never sees a key, a backend's task id or a refresh token.
   * Rules for every RPC of this service:
   *   - Metadata `x-credential-broker: 1` is required; else INVALID_ARGUMENT GUARD_HEADER_MISSING.
   *   - The broker sets a deadline of 10 s where the call has none or a longer one (streams: none), and refuses one that
   *     is too short to answer with DEADLINE_TOO_SHORT.
   *   - `identity` unset means the caller's default identity, else the only one it is granted, else IDENTITY_REQUIRED:
   *     never the first of several.
   *   - Strings are UTF-8 without control characters. A field over its limit is FIELD_INVALID; nothing is cut silently.
   *   - Errors are described at `ErrorReason`. Beside those that an RPC names, each may answer CALLER_UNAUTHENTICATED,
   *     NOT_ALLOWED, CALLER_RATE, OVERLOAD, WARMING_UP, DRAINING, STORE_DOWN, AUDIT_DOWN, ROW_CORRUPT and INTERNAL.
   * </pre>
   */
  public static abstract class CredentialBrokerImplBase
      implements io.grpc.BindableService, AsyncService {

    @java.lang.Override public final io.grpc.ServerServiceDefinition bindService() {
      return CredentialBrokerGrpc.bindService(this);
    }
  }

  /**
   * A stub to allow clients to do asynchronous rpc calls to service CredentialBroker.
   * <pre>
   * Hands out ready-made authorization headers for calls to a backend, and binds the threads of a caller to tasks.
   * A caller names what a call is for (a scope) and which conversation or run it belongs to (a thread), and gets the
   * complete set of headers to attach. It never sees a key, a backend's task id or a refresh token.
   * Rules for every RPC of this service:
   *   - Metadata `x-credential-broker: 1` is required; else INVALID_ARGUMENT GUARD_HEADER_MISSING.
   *   - The broker sets a deadline of 10 s where the call has none or a longer one (streams: none), and refuses one that
   *     is too short to answer with DEADLINE_TOO_SHORT.
   *   - `identity` unset means the caller's default identity, else the only one it is granted, else IDENTITY_REQUIRED:
   *     never the first of several.
   *   - Strings are UTF-8 without control characters. A field over its limit is FIELD_INVALID; nothing is cut silently.
   *   - Errors are described at `ErrorReason`. Beside those that an RPC names, each may answer CALLER_UNAUTHENTICATED,
   *     NOT_ALLOWED, CALLER_RATE, OVERLOAD, WARMING_UP, DRAINING, STORE_DOWN, AUDIT_DOWN, ROW_CORRUPT and INTERNAL.
   * </pre>
   */
  public static final class CredentialBrokerStub
      extends io.grpc.stub.AbstractAsyncStub<CredentialBrokerStub> {
    private CredentialBrokerStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected CredentialBrokerStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new CredentialBrokerStub(channel, callOptions);
    }

    /**
     * <pre>
     * Returns the headers to attach to one call, or to every call until they expire. The main job.
     * Who: a caller granted the identity and the scope.
     * Idempotency: safe to repeat and to retry. The first call for a thread registers a task at the backend; however many
     * callers wait for it, there is one registration, and it goes on when a caller gives up. Calls after that touch
     * neither backend nor store.
     * Errors: SCOPE_UNKNOWN, SCOPE_DISABLED, THREAD_ID_REQUIRED, THREAD_ID_INVALID, IDENTITY_REQUIRED, FIELD_INVALID,
     * IDENTITY_REVOKED, TARGET_NOT_ALLOWED, ACCOUNT_MISMATCH, MIN_VALIDITY_TOO_LONG, FEATURE_DISABLED,
     * BACKEND_UNSUPPORTED, BEARER_UNAVAILABLE, IDENTITY_REJECTED, REAUTH_REQUIRED, TASK_ENDED, CLOCK_SKEW, QUOTA_TASKS,
     * GENERATION_CHANGED, REGISTRATION_IN_PROGRESS, BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, ISSUER_DOWN,
     * KEY_PROVIDER_DOWN.
     * </pre>
     */
    public void getAuthorization(dev.credentialbroker.v1.GetAuthorizationRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.GetAuthorizationResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getGetAuthorizationMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Makes sure that a thread, or the background work of an identity, has a live task, so that later calls need not wait
     * for one. Nobody has to call it: GetAuthorization registers on first need.
     * Who: a caller granted the identity, with the right to register tasks.
     * Idempotency: by (identity, thread) or (identity, background): while the task lives, repeating answers the same task.
     * On a thread whose task was ended or revoked it starts a new task.
     * Errors: THREAD_ID_INVALID, IDENTITY_REQUIRED, FIELD_INVALID, IDENTITY_REVOKED, FEATURE_DISABLED,
     * BACKEND_UNSUPPORTED (also for an identity of mode BEARER, which has no tasks), IDENTITY_REJECTED, REAUTH_REQUIRED,
     * CLOCK_SKEW, QUOTA_TASKS, GENERATION_CHANGED, REGISTRATION_IN_PROGRESS, BACKEND_DOWN, BACKEND_THROTTLED,
     * BACKEND_PROTOCOL, KEY_PROVIDER_DOWN.
     * </pre>
     */
    public void registerTask(dev.credentialbroker.v1.RegisterTaskRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.RegisterTaskResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getRegisterTaskMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Ends the task of a thread: GetAuthorization answers TASK_ENDED for it from then on, while its tombstone lives (30
     * days by default). Ends only this binding; other threads that share the upstream task go on. The background task
     * cannot be ended by callers.
     * Who: a caller granted the identity, with the right to end tasks.
     * Idempotency: repeating answers the same ended task. For a thread that never had a task it leaves a tombstone, so
     * that a registration that comes late finds the thread ended.
     * Errors: THREAD_ID_REQUIRED, THREAD_ID_INVALID, IDENTITY_REQUIRED, IDENTITY_REVOKED, GENERATION_CHANGED.
     * </pre>
     */
    public void endTask(dev.credentialbroker.v1.EndTaskRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.EndTaskResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getEndTaskMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Reports that the backend answered 401 to an authorization, and returns a better one.
     * If a newer one exists it is returned at once. Else the broker tries, each at most once within a window (10 minutes
     * by default) however many callers report: a fresh task for an assertion, then a new registration of the identity; a
     * refresh for a bearer. A rejected assertion never spends a refresh token.
     * Who: the caller that was given the revision. Another caller's revision is REVISION_UNKNOWN and changes nothing.
     * Idempotency: safe to repeat; a revision that has been replaced costs nothing.
     * Errors: those of GetAuthorization, and REVISION_UNKNOWN. BACKEND_UNSUPPORTED: only this scope's route rejects the
     * identity's assertions, while others accept them. IDENTITY_REJECTED, REAUTH_REQUIRED: nothing is left to try.
     * </pre>
     */
    public void reportRejected(dev.credentialbroker.v1.ReportRejectedRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ReportRejectedResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getReportRejectedMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Keeps authorizations current without asking: each subscription gets its first value at once, the next before
     * `refresh_time`, and a withdrawal within a second of a revocation. Each value is authorised anew when it is sent.
     * A subscription that is denied or fails gets an `error`, stays, and is tried again by the broker; it never ends the
     * stream. The broker sends `closing` and ends the stream with OK before the connection gets too old; open a new one
     * then, with the revisions held, so that unchanged values are not sent again. A stream holds at most 1,000
     * subscriptions; a further one gets an `error` WATCH_LIMIT.
     * Who: a caller granted the identity and scope of each subscription.
     * Errors that end the stream: WATCH_LIMIT (too many streams of this caller), WATCHER_TOO_SLOW, and those named at the
     * service. A malformed first message is FIELD_INVALID; later ones get an `error`.
     * </pre>
     */
    public io.grpc.stub.StreamObserver<dev.credentialbroker.v1.WatchAuthorizationsRequest> watchAuthorizations(
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.WatchAuthorizationsResponse> responseObserver) {
      return io.grpc.stub.ClientCalls.asyncBidiStreamingCall(
          getChannel().newCall(getWatchAuthorizationsMethod(), getCallOptions()), responseObserver);
    }

    /**
     * <pre>
     * Says what GetAuthorization would decide for the same request and which rules lead to it. A dry run: registers,
     * refreshes and hands out nothing.
     * Who: a caller granted the identity and the scope.
     * Errors: SCOPE_UNKNOWN, THREAD_ID_REQUIRED, THREAD_ID_INVALID, IDENTITY_REQUIRED, FIELD_INVALID. A refusal is an
     * answer here, not an error.
     * </pre>
     */
    public void explainAuthorization(dev.credentialbroker.v1.ExplainAuthorizationRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ExplainAuthorizationResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getExplainAuthorizationMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Lists the scopes that the caller may use, with their rules, ordered by name.
     * Who: every caller; the list holds only what it may use with at least one identity.
     * Errors: FIELD_INVALID, PAGE_TOKEN_INVALID.
     * </pre>
     */
    public void listScopes(dev.credentialbroker.v1.ListScopesRequest request,
        io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ListScopesResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getListScopesMethod(), getCallOptions()), request, responseObserver);
    }
  }

  /**
   * A stub to allow clients to do synchronous rpc calls to service CredentialBroker.
   * <pre>
   * Hands out ready-made authorization headers for calls to a backend, and binds the threads of a caller to tasks.
   * A caller names what a call is for (a scope) and which conversation or run it belongs to (a thread), and gets the
   * complete set of headers to attach. It never sees a key, a backend's task id or a refresh token.
   * Rules for every RPC of this service:
   *   - Metadata `x-credential-broker: 1` is required; else INVALID_ARGUMENT GUARD_HEADER_MISSING.
   *   - The broker sets a deadline of 10 s where the call has none or a longer one (streams: none), and refuses one that
   *     is too short to answer with DEADLINE_TOO_SHORT.
   *   - `identity` unset means the caller's default identity, else the only one it is granted, else IDENTITY_REQUIRED:
   *     never the first of several.
   *   - Strings are UTF-8 without control characters. A field over its limit is FIELD_INVALID; nothing is cut silently.
   *   - Errors are described at `ErrorReason`. Beside those that an RPC names, each may answer CALLER_UNAUTHENTICATED,
   *     NOT_ALLOWED, CALLER_RATE, OVERLOAD, WARMING_UP, DRAINING, STORE_DOWN, AUDIT_DOWN, ROW_CORRUPT and INTERNAL.
   * </pre>
   */
  public static final class CredentialBrokerBlockingV2Stub
      extends io.grpc.stub.AbstractBlockingStub<CredentialBrokerBlockingV2Stub> {
    private CredentialBrokerBlockingV2Stub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected CredentialBrokerBlockingV2Stub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new CredentialBrokerBlockingV2Stub(channel, callOptions);
    }

    /**
     * <pre>
     * Returns the headers to attach to one call, or to every call until they expire. The main job.
     * Who: a caller granted the identity and the scope.
     * Idempotency: safe to repeat and to retry. The first call for a thread registers a task at the backend; however many
     * callers wait for it, there is one registration, and it goes on when a caller gives up. Calls after that touch
     * neither backend nor store.
     * Errors: SCOPE_UNKNOWN, SCOPE_DISABLED, THREAD_ID_REQUIRED, THREAD_ID_INVALID, IDENTITY_REQUIRED, FIELD_INVALID,
     * IDENTITY_REVOKED, TARGET_NOT_ALLOWED, ACCOUNT_MISMATCH, MIN_VALIDITY_TOO_LONG, FEATURE_DISABLED,
     * BACKEND_UNSUPPORTED, BEARER_UNAVAILABLE, IDENTITY_REJECTED, REAUTH_REQUIRED, TASK_ENDED, CLOCK_SKEW, QUOTA_TASKS,
     * GENERATION_CHANGED, REGISTRATION_IN_PROGRESS, BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, ISSUER_DOWN,
     * KEY_PROVIDER_DOWN.
     * </pre>
     */
    public dev.credentialbroker.v1.GetAuthorizationResponse getAuthorization(dev.credentialbroker.v1.GetAuthorizationRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getGetAuthorizationMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Makes sure that a thread, or the background work of an identity, has a live task, so that later calls need not wait
     * for one. Nobody has to call it: GetAuthorization registers on first need.
     * Who: a caller granted the identity, with the right to register tasks.
     * Idempotency: by (identity, thread) or (identity, background): while the task lives, repeating answers the same task.
     * On a thread whose task was ended or revoked it starts a new task.
     * Errors: THREAD_ID_INVALID, IDENTITY_REQUIRED, FIELD_INVALID, IDENTITY_REVOKED, FEATURE_DISABLED,
     * BACKEND_UNSUPPORTED (also for an identity of mode BEARER, which has no tasks), IDENTITY_REJECTED, REAUTH_REQUIRED,
     * CLOCK_SKEW, QUOTA_TASKS, GENERATION_CHANGED, REGISTRATION_IN_PROGRESS, BACKEND_DOWN, BACKEND_THROTTLED,
     * BACKEND_PROTOCOL, KEY_PROVIDER_DOWN.
     * </pre>
     */
    public dev.credentialbroker.v1.RegisterTaskResponse registerTask(dev.credentialbroker.v1.RegisterTaskRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getRegisterTaskMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Ends the task of a thread: GetAuthorization answers TASK_ENDED for it from then on, while its tombstone lives (30
     * days by default). Ends only this binding; other threads that share the upstream task go on. The background task
     * cannot be ended by callers.
     * Who: a caller granted the identity, with the right to end tasks.
     * Idempotency: repeating answers the same ended task. For a thread that never had a task it leaves a tombstone, so
     * that a registration that comes late finds the thread ended.
     * Errors: THREAD_ID_REQUIRED, THREAD_ID_INVALID, IDENTITY_REQUIRED, IDENTITY_REVOKED, GENERATION_CHANGED.
     * </pre>
     */
    public dev.credentialbroker.v1.EndTaskResponse endTask(dev.credentialbroker.v1.EndTaskRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getEndTaskMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Reports that the backend answered 401 to an authorization, and returns a better one.
     * If a newer one exists it is returned at once. Else the broker tries, each at most once within a window (10 minutes
     * by default) however many callers report: a fresh task for an assertion, then a new registration of the identity; a
     * refresh for a bearer. A rejected assertion never spends a refresh token.
     * Who: the caller that was given the revision. Another caller's revision is REVISION_UNKNOWN and changes nothing.
     * Idempotency: safe to repeat; a revision that has been replaced costs nothing.
     * Errors: those of GetAuthorization, and REVISION_UNKNOWN. BACKEND_UNSUPPORTED: only this scope's route rejects the
     * identity's assertions, while others accept them. IDENTITY_REJECTED, REAUTH_REQUIRED: nothing is left to try.
     * </pre>
     */
    public dev.credentialbroker.v1.ReportRejectedResponse reportRejected(dev.credentialbroker.v1.ReportRejectedRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getReportRejectedMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Keeps authorizations current without asking: each subscription gets its first value at once, the next before
     * `refresh_time`, and a withdrawal within a second of a revocation. Each value is authorised anew when it is sent.
     * A subscription that is denied or fails gets an `error`, stays, and is tried again by the broker; it never ends the
     * stream. The broker sends `closing` and ends the stream with OK before the connection gets too old; open a new one
     * then, with the revisions held, so that unchanged values are not sent again. A stream holds at most 1,000
     * subscriptions; a further one gets an `error` WATCH_LIMIT.
     * Who: a caller granted the identity and scope of each subscription.
     * Errors that end the stream: WATCH_LIMIT (too many streams of this caller), WATCHER_TOO_SLOW, and those named at the
     * service. A malformed first message is FIELD_INVALID; later ones get an `error`.
     * </pre>
     */
    @io.grpc.ExperimentalApi("https://github.com/grpc/grpc-java/issues/10918")
    public io.grpc.stub.BlockingClientCall<dev.credentialbroker.v1.WatchAuthorizationsRequest, dev.credentialbroker.v1.WatchAuthorizationsResponse>
        watchAuthorizations() {
      return io.grpc.stub.ClientCalls.blockingBidiStreamingCall(
          getChannel(), getWatchAuthorizationsMethod(), getCallOptions());
    }

    /**
     * <pre>
     * Says what GetAuthorization would decide for the same request and which rules lead to it. A dry run: registers,
     * refreshes and hands out nothing.
     * Who: a caller granted the identity and the scope.
     * Errors: SCOPE_UNKNOWN, THREAD_ID_REQUIRED, THREAD_ID_INVALID, IDENTITY_REQUIRED, FIELD_INVALID. A refusal is an
     * answer here, not an error.
     * </pre>
     */
    public dev.credentialbroker.v1.ExplainAuthorizationResponse explainAuthorization(dev.credentialbroker.v1.ExplainAuthorizationRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getExplainAuthorizationMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Lists the scopes that the caller may use, with their rules, ordered by name.
     * Who: every caller; the list holds only what it may use with at least one identity.
     * Errors: FIELD_INVALID, PAGE_TOKEN_INVALID.
     * </pre>
     */
    public dev.credentialbroker.v1.ListScopesResponse listScopes(dev.credentialbroker.v1.ListScopesRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getListScopesMethod(), getCallOptions(), request);
    }
  }

  /**
   * A stub to allow clients to do limited synchronous rpc calls to service CredentialBroker.
   * <pre>
   * Hands out ready-made authorization headers for calls to a backend, and binds the threads of a caller to tasks.
   * A caller names what a call is for (a scope) and which conversation or run it belongs to (a thread), and gets the
   * complete set of headers to attach. It never sees a key, a backend's task id or a refresh token.
   * Rules for every RPC of this service:
   *   - Metadata `x-credential-broker: 1` is required; else INVALID_ARGUMENT GUARD_HEADER_MISSING.
   *   - The broker sets a deadline of 10 s where the call has none or a longer one (streams: none), and refuses one that
   *     is too short to answer with DEADLINE_TOO_SHORT.
   *   - `identity` unset means the caller's default identity, else the only one it is granted, else IDENTITY_REQUIRED:
   *     never the first of several.
   *   - Strings are UTF-8 without control characters. A field over its limit is FIELD_INVALID; nothing is cut silently.
   *   - Errors are described at `ErrorReason`. Beside those that an RPC names, each may answer CALLER_UNAUTHENTICATED,
   *     NOT_ALLOWED, CALLER_RATE, OVERLOAD, WARMING_UP, DRAINING, STORE_DOWN, AUDIT_DOWN, ROW_CORRUPT and INTERNAL.
   * </pre>
   */
  public static final class CredentialBrokerBlockingStub
      extends io.grpc.stub.AbstractBlockingStub<CredentialBrokerBlockingStub> {
    private CredentialBrokerBlockingStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected CredentialBrokerBlockingStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new CredentialBrokerBlockingStub(channel, callOptions);
    }

    /**
     * <pre>
     * Returns the headers to attach to one call, or to every call until they expire. The main job.
     * Who: a caller granted the identity and the scope.
     * Idempotency: safe to repeat and to retry. The first call for a thread registers a task at the backend; however many
     * callers wait for it, there is one registration, and it goes on when a caller gives up. Calls after that touch
     * neither backend nor store.
     * Errors: SCOPE_UNKNOWN, SCOPE_DISABLED, THREAD_ID_REQUIRED, THREAD_ID_INVALID, IDENTITY_REQUIRED, FIELD_INVALID,
     * IDENTITY_REVOKED, TARGET_NOT_ALLOWED, ACCOUNT_MISMATCH, MIN_VALIDITY_TOO_LONG, FEATURE_DISABLED,
     * BACKEND_UNSUPPORTED, BEARER_UNAVAILABLE, IDENTITY_REJECTED, REAUTH_REQUIRED, TASK_ENDED, CLOCK_SKEW, QUOTA_TASKS,
     * GENERATION_CHANGED, REGISTRATION_IN_PROGRESS, BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, ISSUER_DOWN,
     * KEY_PROVIDER_DOWN.
     * </pre>
     */
    public dev.credentialbroker.v1.GetAuthorizationResponse getAuthorization(dev.credentialbroker.v1.GetAuthorizationRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getGetAuthorizationMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Makes sure that a thread, or the background work of an identity, has a live task, so that later calls need not wait
     * for one. Nobody has to call it: GetAuthorization registers on first need.
     * Who: a caller granted the identity, with the right to register tasks.
     * Idempotency: by (identity, thread) or (identity, background): while the task lives, repeating answers the same task.
     * On a thread whose task was ended or revoked it starts a new task.
     * Errors: THREAD_ID_INVALID, IDENTITY_REQUIRED, FIELD_INVALID, IDENTITY_REVOKED, FEATURE_DISABLED,
     * BACKEND_UNSUPPORTED (also for an identity of mode BEARER, which has no tasks), IDENTITY_REJECTED, REAUTH_REQUIRED,
     * CLOCK_SKEW, QUOTA_TASKS, GENERATION_CHANGED, REGISTRATION_IN_PROGRESS, BACKEND_DOWN, BACKEND_THROTTLED,
     * BACKEND_PROTOCOL, KEY_PROVIDER_DOWN.
     * </pre>
     */
    public dev.credentialbroker.v1.RegisterTaskResponse registerTask(dev.credentialbroker.v1.RegisterTaskRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getRegisterTaskMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Ends the task of a thread: GetAuthorization answers TASK_ENDED for it from then on, while its tombstone lives (30
     * days by default). Ends only this binding; other threads that share the upstream task go on. The background task
     * cannot be ended by callers.
     * Who: a caller granted the identity, with the right to end tasks.
     * Idempotency: repeating answers the same ended task. For a thread that never had a task it leaves a tombstone, so
     * that a registration that comes late finds the thread ended.
     * Errors: THREAD_ID_REQUIRED, THREAD_ID_INVALID, IDENTITY_REQUIRED, IDENTITY_REVOKED, GENERATION_CHANGED.
     * </pre>
     */
    public dev.credentialbroker.v1.EndTaskResponse endTask(dev.credentialbroker.v1.EndTaskRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getEndTaskMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Reports that the backend answered 401 to an authorization, and returns a better one.
     * If a newer one exists it is returned at once. Else the broker tries, each at most once within a window (10 minutes
     * by default) however many callers report: a fresh task for an assertion, then a new registration of the identity; a
     * refresh for a bearer. A rejected assertion never spends a refresh token.
     * Who: the caller that was given the revision. Another caller's revision is REVISION_UNKNOWN and changes nothing.
     * Idempotency: safe to repeat; a revision that has been replaced costs nothing.
     * Errors: those of GetAuthorization, and REVISION_UNKNOWN. BACKEND_UNSUPPORTED: only this scope's route rejects the
     * identity's assertions, while others accept them. IDENTITY_REJECTED, REAUTH_REQUIRED: nothing is left to try.
     * </pre>
     */
    public dev.credentialbroker.v1.ReportRejectedResponse reportRejected(dev.credentialbroker.v1.ReportRejectedRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getReportRejectedMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Says what GetAuthorization would decide for the same request and which rules lead to it. A dry run: registers,
     * refreshes and hands out nothing.
     * Who: a caller granted the identity and the scope.
     * Errors: SCOPE_UNKNOWN, THREAD_ID_REQUIRED, THREAD_ID_INVALID, IDENTITY_REQUIRED, FIELD_INVALID. A refusal is an
     * answer here, not an error.
     * </pre>
     */
    public dev.credentialbroker.v1.ExplainAuthorizationResponse explainAuthorization(dev.credentialbroker.v1.ExplainAuthorizationRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getExplainAuthorizationMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Lists the scopes that the caller may use, with their rules, ordered by name.
     * Who: every caller; the list holds only what it may use with at least one identity.
     * Errors: FIELD_INVALID, PAGE_TOKEN_INVALID.
     * </pre>
     */
    public dev.credentialbroker.v1.ListScopesResponse listScopes(dev.credentialbroker.v1.ListScopesRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getListScopesMethod(), getCallOptions(), request);
    }
  }

  /**
   * A stub to allow clients to do ListenableFuture-style rpc calls to service CredentialBroker.
   * <pre>
   * Hands out ready-made authorization headers for calls to a backend, and binds the threads of a caller to tasks.
   * A caller names what a call is for (a scope) and which conversation or run it belongs to (a thread), and gets the
   * complete set of headers to attach. It never sees a key, a backend's task id or a refresh token.
   * Rules for every RPC of this service:
   *   - Metadata `x-credential-broker: 1` is required; else INVALID_ARGUMENT GUARD_HEADER_MISSING.
   *   - The broker sets a deadline of 10 s where the call has none or a longer one (streams: none), and refuses one that
   *     is too short to answer with DEADLINE_TOO_SHORT.
   *   - `identity` unset means the caller's default identity, else the only one it is granted, else IDENTITY_REQUIRED:
   *     never the first of several.
   *   - Strings are UTF-8 without control characters. A field over its limit is FIELD_INVALID; nothing is cut silently.
   *   - Errors are described at `ErrorReason`. Beside those that an RPC names, each may answer CALLER_UNAUTHENTICATED,
   *     NOT_ALLOWED, CALLER_RATE, OVERLOAD, WARMING_UP, DRAINING, STORE_DOWN, AUDIT_DOWN, ROW_CORRUPT and INTERNAL.
   * </pre>
   */
  public static final class CredentialBrokerFutureStub
      extends io.grpc.stub.AbstractFutureStub<CredentialBrokerFutureStub> {
    private CredentialBrokerFutureStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected CredentialBrokerFutureStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new CredentialBrokerFutureStub(channel, callOptions);
    }

    /**
     * <pre>
     * Returns the headers to attach to one call, or to every call until they expire. The main job.
     * Who: a caller granted the identity and the scope.
     * Idempotency: safe to repeat and to retry. The first call for a thread registers a task at the backend; however many
     * callers wait for it, there is one registration, and it goes on when a caller gives up. Calls after that touch
     * neither backend nor store.
     * Errors: SCOPE_UNKNOWN, SCOPE_DISABLED, THREAD_ID_REQUIRED, THREAD_ID_INVALID, IDENTITY_REQUIRED, FIELD_INVALID,
     * IDENTITY_REVOKED, TARGET_NOT_ALLOWED, ACCOUNT_MISMATCH, MIN_VALIDITY_TOO_LONG, FEATURE_DISABLED,
     * BACKEND_UNSUPPORTED, BEARER_UNAVAILABLE, IDENTITY_REJECTED, REAUTH_REQUIRED, TASK_ENDED, CLOCK_SKEW, QUOTA_TASKS,
     * GENERATION_CHANGED, REGISTRATION_IN_PROGRESS, BACKEND_DOWN, BACKEND_THROTTLED, BACKEND_PROTOCOL, ISSUER_DOWN,
     * KEY_PROVIDER_DOWN.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.GetAuthorizationResponse> getAuthorization(
        dev.credentialbroker.v1.GetAuthorizationRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getGetAuthorizationMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Makes sure that a thread, or the background work of an identity, has a live task, so that later calls need not wait
     * for one. Nobody has to call it: GetAuthorization registers on first need.
     * Who: a caller granted the identity, with the right to register tasks.
     * Idempotency: by (identity, thread) or (identity, background): while the task lives, repeating answers the same task.
     * On a thread whose task was ended or revoked it starts a new task.
     * Errors: THREAD_ID_INVALID, IDENTITY_REQUIRED, FIELD_INVALID, IDENTITY_REVOKED, FEATURE_DISABLED,
     * BACKEND_UNSUPPORTED (also for an identity of mode BEARER, which has no tasks), IDENTITY_REJECTED, REAUTH_REQUIRED,
     * CLOCK_SKEW, QUOTA_TASKS, GENERATION_CHANGED, REGISTRATION_IN_PROGRESS, BACKEND_DOWN, BACKEND_THROTTLED,
     * BACKEND_PROTOCOL, KEY_PROVIDER_DOWN.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.RegisterTaskResponse> registerTask(
        dev.credentialbroker.v1.RegisterTaskRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getRegisterTaskMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Ends the task of a thread: GetAuthorization answers TASK_ENDED for it from then on, while its tombstone lives (30
     * days by default). Ends only this binding; other threads that share the upstream task go on. The background task
     * cannot be ended by callers.
     * Who: a caller granted the identity, with the right to end tasks.
     * Idempotency: repeating answers the same ended task. For a thread that never had a task it leaves a tombstone, so
     * that a registration that comes late finds the thread ended.
     * Errors: THREAD_ID_REQUIRED, THREAD_ID_INVALID, IDENTITY_REQUIRED, IDENTITY_REVOKED, GENERATION_CHANGED.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.EndTaskResponse> endTask(
        dev.credentialbroker.v1.EndTaskRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getEndTaskMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Reports that the backend answered 401 to an authorization, and returns a better one.
     * If a newer one exists it is returned at once. Else the broker tries, each at most once within a window (10 minutes
     * by default) however many callers report: a fresh task for an assertion, then a new registration of the identity; a
     * refresh for a bearer. A rejected assertion never spends a refresh token.
     * Who: the caller that was given the revision. Another caller's revision is REVISION_UNKNOWN and changes nothing.
     * Idempotency: safe to repeat; a revision that has been replaced costs nothing.
     * Errors: those of GetAuthorization, and REVISION_UNKNOWN. BACKEND_UNSUPPORTED: only this scope's route rejects the
     * identity's assertions, while others accept them. IDENTITY_REJECTED, REAUTH_REQUIRED: nothing is left to try.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.ReportRejectedResponse> reportRejected(
        dev.credentialbroker.v1.ReportRejectedRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getReportRejectedMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Says what GetAuthorization would decide for the same request and which rules lead to it. A dry run: registers,
     * refreshes and hands out nothing.
     * Who: a caller granted the identity and the scope.
     * Errors: SCOPE_UNKNOWN, THREAD_ID_REQUIRED, THREAD_ID_INVALID, IDENTITY_REQUIRED, FIELD_INVALID. A refusal is an
     * answer here, not an error.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.ExplainAuthorizationResponse> explainAuthorization(
        dev.credentialbroker.v1.ExplainAuthorizationRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getExplainAuthorizationMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Lists the scopes that the caller may use, with their rules, ordered by name.
     * Who: every caller; the list holds only what it may use with at least one identity.
     * Errors: FIELD_INVALID, PAGE_TOKEN_INVALID.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.credentialbroker.v1.ListScopesResponse> listScopes(
        dev.credentialbroker.v1.ListScopesRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getListScopesMethod(), getCallOptions()), request);
    }
  }

  private static final int METHODID_GET_AUTHORIZATION = 0;
  private static final int METHODID_REGISTER_TASK = 1;
  private static final int METHODID_END_TASK = 2;
  private static final int METHODID_REPORT_REJECTED = 3;
  private static final int METHODID_EXPLAIN_AUTHORIZATION = 4;
  private static final int METHODID_LIST_SCOPES = 5;
  private static final int METHODID_WATCH_AUTHORIZATIONS = 6;

  private static final class MethodHandlers<Req, Resp> implements
      io.grpc.stub.ServerCalls.UnaryMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.ServerStreamingMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.ClientStreamingMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.BidiStreamingMethod<Req, Resp> {
    private final AsyncService serviceImpl;
    private final int methodId;

    MethodHandlers(AsyncService serviceImpl, int methodId) {
      this.serviceImpl = serviceImpl;
      this.methodId = methodId;
    }

    @java.lang.Override
    @java.lang.SuppressWarnings("unchecked")
    public void invoke(Req request, io.grpc.stub.StreamObserver<Resp> responseObserver) {
      switch (methodId) {
        case METHODID_GET_AUTHORIZATION:
          serviceImpl.getAuthorization((dev.credentialbroker.v1.GetAuthorizationRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.GetAuthorizationResponse>) responseObserver);
          break;
        case METHODID_REGISTER_TASK:
          serviceImpl.registerTask((dev.credentialbroker.v1.RegisterTaskRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.RegisterTaskResponse>) responseObserver);
          break;
        case METHODID_END_TASK:
          serviceImpl.endTask((dev.credentialbroker.v1.EndTaskRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.EndTaskResponse>) responseObserver);
          break;
        case METHODID_REPORT_REJECTED:
          serviceImpl.reportRejected((dev.credentialbroker.v1.ReportRejectedRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ReportRejectedResponse>) responseObserver);
          break;
        case METHODID_EXPLAIN_AUTHORIZATION:
          serviceImpl.explainAuthorization((dev.credentialbroker.v1.ExplainAuthorizationRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ExplainAuthorizationResponse>) responseObserver);
          break;
        case METHODID_LIST_SCOPES:
          serviceImpl.listScopes((dev.credentialbroker.v1.ListScopesRequest) request,
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.ListScopesResponse>) responseObserver);
          break;
        default:
          throw new AssertionError();
      }
    }

    @java.lang.Override
    @java.lang.SuppressWarnings("unchecked")
    public io.grpc.stub.StreamObserver<Req> invoke(
        io.grpc.stub.StreamObserver<Resp> responseObserver) {
      switch (methodId) {
        case METHODID_WATCH_AUTHORIZATIONS:
          return (io.grpc.stub.StreamObserver<Req>) serviceImpl.watchAuthorizations(
              (io.grpc.stub.StreamObserver<dev.credentialbroker.v1.WatchAuthorizationsResponse>) responseObserver);
        default:
          throw new AssertionError();
      }
    }
  }

  public static final io.grpc.ServerServiceDefinition bindService(AsyncService service) {
    return io.grpc.ServerServiceDefinition.builder(getServiceDescriptor())
        .addMethod(
          getGetAuthorizationMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.GetAuthorizationRequest,
              dev.credentialbroker.v1.GetAuthorizationResponse>(
                service, METHODID_GET_AUTHORIZATION)))
        .addMethod(
          getRegisterTaskMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.RegisterTaskRequest,
              dev.credentialbroker.v1.RegisterTaskResponse>(
                service, METHODID_REGISTER_TASK)))
        .addMethod(
          getEndTaskMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.EndTaskRequest,
              dev.credentialbroker.v1.EndTaskResponse>(
                service, METHODID_END_TASK)))
        .addMethod(
          getReportRejectedMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.ReportRejectedRequest,
              dev.credentialbroker.v1.ReportRejectedResponse>(
                service, METHODID_REPORT_REJECTED)))
        .addMethod(
          getWatchAuthorizationsMethod(),
          io.grpc.stub.ServerCalls.asyncBidiStreamingCall(
            new MethodHandlers<
              dev.credentialbroker.v1.WatchAuthorizationsRequest,
              dev.credentialbroker.v1.WatchAuthorizationsResponse>(
                service, METHODID_WATCH_AUTHORIZATIONS)))
        .addMethod(
          getExplainAuthorizationMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.ExplainAuthorizationRequest,
              dev.credentialbroker.v1.ExplainAuthorizationResponse>(
                service, METHODID_EXPLAIN_AUTHORIZATION)))
        .addMethod(
          getListScopesMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.credentialbroker.v1.ListScopesRequest,
              dev.credentialbroker.v1.ListScopesResponse>(
                service, METHODID_LIST_SCOPES)))
        .build();
  }

  private static abstract class CredentialBrokerBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoFileDescriptorSupplier, io.grpc.protobuf.ProtoServiceDescriptorSupplier {
    CredentialBrokerBaseDescriptorSupplier() {}

    @java.lang.Override
    public com.google.protobuf.Descriptors.FileDescriptor getFileDescriptor() {
      return dev.credentialbroker.v1.CredentialBrokerProto.getDescriptor();
    }

    @java.lang.Override
    public com.google.protobuf.Descriptors.ServiceDescriptor getServiceDescriptor() {
      return getFileDescriptor().findServiceByName("CredentialBroker");
    }
  }

  private static final class CredentialBrokerFileDescriptorSupplier
      extends CredentialBrokerBaseDescriptorSupplier {
    CredentialBrokerFileDescriptorSupplier() {}
  }

  private static final class CredentialBrokerMethodDescriptorSupplier
      extends CredentialBrokerBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoMethodDescriptorSupplier {
    private final java.lang.String methodName;

    CredentialBrokerMethodDescriptorSupplier(java.lang.String methodName) {
      this.methodName = methodName;
    }

    @java.lang.Override
    public com.google.protobuf.Descriptors.MethodDescriptor getMethodDescriptor() {
      return getServiceDescriptor().findMethodByName(methodName);
    }
  }

  private static volatile io.grpc.ServiceDescriptor serviceDescriptor;

  public static io.grpc.ServiceDescriptor getServiceDescriptor() {
    io.grpc.ServiceDescriptor result = serviceDescriptor;
    if (result == null) {
      synchronized (CredentialBrokerGrpc.class) {
        result = serviceDescriptor;
        if (result == null) {
          serviceDescriptor = result = io.grpc.ServiceDescriptor.newBuilder(SERVICE_NAME)
              .setSchemaDescriptor(new CredentialBrokerFileDescriptorSupplier())
              .addMethod(getGetAuthorizationMethod())
              .addMethod(getRegisterTaskMethod())
              .addMethod(getEndTaskMethod())
              .addMethod(getReportRejectedMethod())
              .addMethod(getWatchAuthorizationsMethod())
              .addMethod(getExplainAuthorizationMethod())
              .addMethod(getListScopesMethod())
              .build();
        }
      }
    }
    return result;
  }
}
