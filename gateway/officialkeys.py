"""Official configuration keys that are accepted and have no effect here.

Most of them tune what does not exist in this design: thread pools, locks, memory maps, an off-heap buffer pool,
the raft commitlog. Some switch on what is not there: SQL92 filters, stopping groups that are far behind. They are kept
with the defaults of 4.9.4, because tools read the whole list from a broker: `mqadmin exportConfigs` fails when one of
the keys that it wants is missing.

A key that gets a meaning moves from here to an option class; a test holds the two apart.
"""

BROKER: dict[str, str] = dict(
    line.split("=")
    for line in """
        messageStorePlugIn=
        sendMessageThreadPoolNums=4
        putMessageFutureThreadPoolNums=4
        pullMessageThreadPoolNums=32
        processReplyMessageThreadPoolNums=32
        queryMessageThreadPoolNums=16
        adminBrokerThreadPoolNums=16
        clientManageThreadPoolNums=32
        consumerManageThreadPoolNums=32
        heartbeatThreadPoolNums=8
        endTransactionThreadPoolNums=24
        flushConsumerOffsetHistoryInterval=60000
        fetchNamesrvAddrByAddressServer=false
        sendThreadPoolQueueCapacity=10000
        putThreadPoolQueueCapacity=10000
        pullThreadPoolQueueCapacity=100000
        replyThreadPoolQueueCapacity=10000
        queryThreadPoolQueueCapacity=20000
        clientManagerThreadPoolQueueCapacity=1000000
        consumerManagerThreadPoolQueueCapacity=1000000
        heartbeatThreadPoolQueueCapacity=50000
        endTransactionPoolQueueCapacity=100000
        filterServerNums=0
        highSpeedMode=false
        commercialEnable=true
        commercialTimerCount=1
        commercialTransCount=1
        commercialBigCount=1
        commercialBaseCount=1
        transferMsgByHeap=true
        maxDelayTime=40
        forceRegister=true
        disableConsumeIfConsumerReadSlowly=false
        consumerFallbehindThreshold=17179869184
        enablePropertyFilter=false
        filterSupportRetry=false
        brokerFastFailureEnable=true
        waitTimeMillsInSendQueue=200
        waitTimeMillsInPullQueue=5000
        waitTimeMillsInHeartbeatQueue=31000
        waitTimeMillsInTransactionQueue=3000
        enableCalcFilterBitMap=false
        expectConsumerNumUseFilter=32
        maxErrorRateOfBloomFilter=20
        filterDataCleanTimeSpan=86400000
        enableDetailStat=true
        autoDeleteUnusedStats=false
        isolateLogEnable=false
        clientWorkerThreads=4
        clientCallbackExecutorThreads=4
        clientOnewaySemaphoreValue=65535
        clientAsyncSemaphoreValue=65535
        connectTimeoutMillis=3000
        channelNotActiveInterval=60000
        clientChannelMaxIdleTimeSeconds=120
        clientSocketSndBufSize=0
        clientSocketRcvBufSize=0
        clientPooledByteBufAllocatorEnable=false
        clientCloseSocketIfTimeout=true
        useTLS=false
        storePathDLedgerCommitLog=
        readOnlyCommitLogStorePaths=
        enableConsumeQueueExt=false
        mappedFileSizeConsumeQueueExt=50331648
        bitMapLengthConsumeQueueExt=112
        commitIntervalCommitLog=200
        commitCommitLogLeastPages=4
        commitCommitLogThoroughInterval=200
        useReentrantLockWhenPutMessage=true
        destroyMapedFileIntervalForcibly=120000
        redeleteHangedFileInterval=120000
        putMsgIndexHightWater=600000
        flushIntervalConsumeQueue=1000
        flushConsumeQueueLeastPages=2
        deleteCommitLogFilesInterval=100
        deleteConsumeQueueFilesInterval=100
        messageIndexSafe=false
        flushLeastPagesWhenWarmMapedFile=4096
        warmMapedFileEnable=false
        debugLockEnable=false
        duplicationEnable=false
        diskFallRecorded=true
        osPageCacheBusyTimeOutMills=1000
        transientStorePoolEnable=false
        transientStorePoolSize=5
        fastFailIfNoBufferInStorePool=false
        enableDLegerCommitLog=false
        dLegerGroup=
        dLegerPeers=
        dLegerSelfId=
        preferredLeaderId=
        isEnableBatchPush=false
        enableScheduleMessageStats=true
        enableScheduleAsyncDeliver=false
        scheduleAsyncDeliverMaxPendingLimit=2000
        scheduleAsyncDeliverMaxResendNum2Blocked=3
        enableLmq=false
        enableMultiDispatch=false
        maxLmqConsumeQueueNum=20000
    """.split()
)

SERVER: dict[str, str] = dict(
    line.split("=")
    for line in """
        serverWorkerThreads=8
        serverCallbackExecutorThreads=0
        serverSelectorThreads=3
        serverOnewaySemaphoreValue=256
        serverAsyncSemaphoreValue=64
        serverSocketSndBufSize=0
        serverSocketRcvBufSize=0
        writeBufferHighWaterMark=0
        writeBufferLowWaterMark=0
        serverPooledByteBufAllocatorEnable=true
        useEpollNativeSelector=false
    """.split()
)

# Added by 5.x (names as of 5.3.3); a 4.x tool does not ask for them, so they need no value.
SINCE_5 = frozenset(
    """
    accessMessageInMemoryHotRatio accountStatsEnable accountStatsPrintZeroValues ackMessageThreadPoolNums
    ackThreadPoolQueueCapacity adminBrokerThreadPoolQueueCapacity allAckInSyncStateSet
    allowRecallWhenBrokerNotWriteable appendAckAsync appendCkAsync asyncLearner asyncSendEnable
    autoMessageVersionOnTopicLen batchDispatchRequestThreadPoolNums
    bottomMostCompressionTypeForConsumeQueueStore broadcastOffsetExpireMaxSecond
    broadcastOffsetExpireSecond brokerConfigPath brokerElectionPriority brokerHeartbeatInterval
    brokerNotActiveTimeoutMillis cgColdReadThreshold channelExpiredTimeout checkSyncStateSetPeriod
    cleanOfflineBrokerInterval cleanRocksDBDirtyCQIntervalMin cleanSwapedMapInterval
    clearRetryTopicWhenDeleteTopic clientRequestThreadPoolNums clientRequestThreadPoolQueueCapacity
    coldCtrStrategyEnable coldDataFlowControlEnable coldDataScanEnable commercialSizePerMsg
    commitLogForceSwapMapInterval commitLogSwapMapInterval commitLogSwapMapReserveFileNum
    compactionCqMappedFileSize compactionMappedFileSize compactionScheduleInternal compactionThreadNum
    compatibleWithOldNameSrv configBlackList configManagerVersion consumerOffsetUpdateVersionStep
    controllerAddr controllerHeartBeatTimeoutMills correctLogicMinOffsetForceInterval
    correctLogicMinOffsetSleepInterval dataReadAheadEnable defaultMessageRequestMode
    defaultPopShareQueueNum defaultThreadPoolNums defaultThreadPoolQueueCapacity
    delayOffsetUpdateVersionStep deleteFileBatchMax deleteTopicWithBrokerRegistration
    disableCallbackExecutor disableNettyWorkerGroup disappearTimeAfterStart diskSpaceCleanForciblyRatio
    diskSpaceWarningLevelRatio dispatchCqCacheNum dispatchCqThreads dispatchFromSenderThread
    enableAllTopicList enableAsyncReput enableAutoInSyncReplicas enableBatchPush
    enableBroadcastOffsetStore enableBuildConsumeQueueConcurrently enableCleanExpiredOffset
    enableCompaction enableControllerInNamesrv enableControllerMode enableCreateSysGroup
    enableFastChannelEventProcess enableLmqStats enableMixedMessageType enableNetWorkFlowControl
    enableNotifyAfterPopOrderLockRelease enableNotifyBeforePopCalculateLag enablePopBatchAck
    enablePopBufferMerge enablePopLog enablePopMessageThreshold enableReconnectForGoAway
    enableRegisterProducer enableRemoteEscape enableRetryTopicV2 enableRocksDBLog
    enableShutdownGracefully enableSingleTopicRegister enableSkipLongAwaitingAck enableSlaveActingMaster
    enableSplitRegistration enableTopicList enabledAppendPropCRC estimateAccumulation
    fetchControllerAddrByDnsLookup fetchNameSrvAddrByDnsLookup fetchNamesrvAddrInterval
    forceVerifyPropCRC forwardTimeout globalColdReadThreshold haFlowControlEnable haMaxGapNotInSync
    haMaxTimeSlaveNotCatchup initPopOffsetByCheckMsgInMem isBrokerContainer isInBrokerContainer
    isScanAvailableNameSrv litePullMessageEnable litePullMessageThreadPoolNums
    litePullThreadPoolQueueCapacity loadBalancePollNameServerInterval loadBalanceProcessorThreadPoolNums
    loadBalanceThreadPoolQueueCapacity lockInStrictMode logicQueueForceSwapMapInterval
    logicQueueSwapMapInterval logicQueueSwapMapReserveFileNum logicalDiskSpaceCleanForciblyThreshold
    mappedFileSizeTimerLog mappedFileSwapEnable mapperFileSizeBatchConsumeQueue
    maxAsyncPutMessageRequests maxBatchDeleteFilesNum maxChecksumRange maxConsumeQueueScan
    maxFilterMessageSize maxHaTransferByteInSecond maxOffsetMapSize maxPopPollingSize
    maxReconnectIntervalTimeSeconds maxRecoveryCommitlogFiles maxSlaveResendLength
    maxStatsIdleTimeInMinutes maxTopicLength memTableFlushIntervalMs metricGrpcExporterIntervalInMills
    metricGrpcExporterTimeOutInMills metricLoggingExporterIntervalInMills metricsExporterType
    metricsGrpcExporterHeader metricsGrpcExporterTarget metricsInDelta metricsLabel
    metricsOtelCardinalityLimit metricsPromExporterHost metricsPromExporterPort minInSyncReplicas
    needWaitForService notifyMinBrokerIdChanged popCkMaxBufferSize popCkOffsetMaxQueueSize
    popCkStayBufferTime popCkStayBufferTimeOut popConsumerFSServiceInit popConsumerKVServiceEnable
    popConsumerKVServiceInit popConsumerKVServiceLog popFromRetryProbability popInflightMessageThreshold
    popLongPollingForceNotifyInterval popPollingMapSize popPollingSize popResponseReturnActualRetryTopic
    popReviveMaxAttemptTimes popReviveMaxReturnSizePerRead printChannelGroups printChannelGroupsMinNum
    pullBatchMaxMessageCount putConsumeQueueDataByFileChannel putMessageTimeout readUnCommitted
    realTimeNotifyConsumerChange realTimePersistRocksDBConfig recallMessageEnable
    recheckReputOffsetFromCq recoverConcurrently recoverThreadPoolNums rejectPullConsumerEnable
    replicasPerDiskPartition retrieveMessageFromPopRetryTopicV1 returnOrderTopicConfigToBroker
    reviveAckWaitMs reviveInterval reviveMaxSlow reviveQueueNum reviveScanTime rocksdbCQDoubleWriteEnable
    rocksdbCompressionType rocksdbFlushWalFrequency rocksdbWalFileRollingThreshold sampleCountThreshold
    sampleSteps searchBcqByCacheEnable sendHeartbeatTimeoutMillis serverLoadBalancerEnable
    serverNettyWorkerGroupEnable shutdownWaitTimeSeconds skipPreOnline skipWhenCKRePutReachMaxTimes
    socksProxyConfig spinLockCollisionRetreatOptimalDegree splitRegistrationSize statRocksDBCQIntervalSec
    storePathBrokerIdentity storePathEpochFile storeType subscriptionExpiredTimeout supportActingMaster
    syncBrokerMemberGroupPeriod syncBrokerMetadataPeriod syncControllerMetadataPeriod syncFromLastFile
    syncMasterFlushOffsetWhenStartup timerCheckMetricsWhen timerColdDataCheckIntervalMs
    timerCongestNumEachSlot timerEnableCheckMetrics timerEnableDisruptor timerEnableRetryUntilSuccess
    timerFlushIntervalMs timerGetMessageThreadNum timerInterceptDelayLevel timerMaxDelaySec
    timerMetricSmallThreshold timerPrecisionMs timerProgressLogIntervalMs timerPutMessageThreadNum
    timerRollWindowSlot timerSkipUnknownError timerStopDequeue timerStopEnqueue timerWarmEnable
    timerWheelEnable topicQueueLockNum totalReplicas transactionMetricFlushInterval
    transactionOpBatchInterval transactionOpMsgMaxSize travelCqFileNumWhenGetMessage
    unRegisterBrokerQueueCapacity updateNameServerAddrPeriod useABSLock usePIDColdCtrStrategy
    useServerSideResetOffset useStaticSubscription validateSystemTopicWhenUpdateTopic
    waitSecondsForService waitTimeMillsInAckQueue waitTimeMillsInAdminBrokerQueue
    waitTimeMillsInLitePullQueue wakeCommitWhenPutMessage wakeFlushWhenPutMessage
    """.split()
)
